"""`pard2 data split`: some prompts are held out, to evaluate with."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pard2.cli.console import print_note
from pard2.cli.options import ForceOption
from pard2.errors import Pard2Error
from pard2.files import check_output


def split(
    source: Annotated[str, typer.Option("-i", "--input", metavar="SOURCE", help="Prompts: a file of JSON, CSV or Parquet, or a data set.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Prompts to hold out.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="JSONL file for the others, to train on.")],
    held_out: Annotated[Path, typer.Option("--held-out", metavar="FILE", help="JSONL file for those that are held out.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another one chooses others.")] = 0,
    force: ForceOption = False,
) -> None:
    """Hold some prompts out, to evaluate a draft with: chosen at random, equal prompts together."""
    from pard2.data.records import RecordWriter, read_records
    from pard2.data.split import split as run

    if os.path.realpath(output) == os.path.realpath(held_out):
        raise Pard2Error("-o and --held-out name the same file")
    for path in (output, held_out):
        check_output(path, (source,))
        if path.exists() and not force:
            raise Pard2Error(f"{path} exists; name another file, or give --force to replace it")
    parts = run(read_records(source), count, seed)
    for path, records in zip((output, held_out), parts, strict=True):
        with RecordWriter(path, replace=True) as writer:
            writer.write(records)
    print_note(f"{output}: {len(parts[0]):,} records; {held_out}: {len(parts[1]):,} held out")
