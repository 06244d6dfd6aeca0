"""`pard2 predict`: what other draft lengths, batch sizes and targets would give, from a result of `bench`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pard2.cli.console import working
from pard2.cli.flags import with_records
from pard2.cli.options import JsonOption, parse_list
from pard2.cli.output import output_console
from pard2.engine.options import EngineOptions
from pard2.errors import Pard2Error


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is predicted; lists are read by `parsed`."""

    method: Annotated[str | None, typer.Option("-m", "--method", metavar="METHOD[,METHOD]", help="By default all that the file holds.")] = None
    draft: Annotated[str | None, typer.Option("-d", "--draft", metavar="NAME[,NAME]", help="Of a file of several drafts, as it names them.")] = None
    suite: Annotated[str | None, typer.Option("-s", "--suite", metavar="SUITE[,SUITE]", help="By default all that the file holds.")] = None
    draft_tokens: Annotated[
        str, typer.Option("--draft-tokens", metavar="K[,K]|all", help="Tokens proposed in a cycle; all: every number that the file tells of.")
    ] = "all"
    tree: Annotated[
        str | None, typer.Option("--tree", metavar="N[,N]", help="Trees of so many nodes, as they were measured; 0 for chains; by default both.")
    ] = None
    batch_size: Annotated[
        str | None,
        typer.Option("--batch-size", metavar="B[,B]", help="Sequences decoded at once; by default those measured, and 1 with --times."),
    ] = None

    def names(self, flag: str, text: str | None) -> list[str] | None:
        return None if text is None else parse_list(flag, text, str)

    def numbers(self, flag: str, text: str | None, least: int) -> list[int] | None:
        """Raises `Pard2Error` for what is no list of numbers, and for numbers that are too small."""
        found = None if text is None else list(dict.fromkeys(parse_list(flag, text, int)))
        for number in found or ():
            if number < least:
                raise Pard2Error(f"{flag} {number}: at least {least} is needed")
        return found


@with_records
def predict(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="What `pard2 bench --json` wrote.", show_default=False)],
    wanted: Wanted,
    times: Annotated[
        Path | None,
        typer.Option("--times", metavar="FILE", help="Times of passes of another machine or target: docs/predict.md says in which form."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the speed of other draft lengths and batch sizes, here or with the times of another target."""
    with working("importing torch"):
        from pard2.bench.predict.predictions import Asked, Predictions
        from pard2.bench.predict.table import predictions_table
        from pard2.bench.predict.times_file import read_times
        from pard2.bench.read_results import read_results

    asked = Asked(
        methods=wanted.names("-m", wanted.method),
        drafts=wanted.names("-d", wanted.draft),
        suites=wanted.names("-s", wanted.suite),
        draft_tokens=None if wanted.draft_tokens == "all" else wanted.numbers("--draft-tokens", wanted.draft_tokens, 1),
        trees=wanted.numbers("--tree", wanted.tree, 0),
        batch_sizes=wanted.numbers("--batch-size", wanted.batch_size, 1),
    )
    for size in asked.batch_sizes or ():
        EngineOptions(max_batch=size)
    found = Predictions(read_results(path), asked, None if times is None else read_times(times))
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    console = output_console()
    console.print(predictions_table(found, console.width))
