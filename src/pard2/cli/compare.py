"""`pard2 bench compare`: what differs between two result files beyond chance."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pard2.cli.console import print_note, working
from pard2.cli.options import JsonOption
from pard2.cli.output import output_console
from pard2.engine.methods import PLAIN
from pard2.reading import printable

if TYPE_CHECKING:
    from rich.table import Table

    from pard2.bench.compare import Difference, Key

_FIGURES = {"acceptance_length": "acceptance length", "speedup": "speed-up"}
_NAMED = 6  # configurations that one file lacks, by name
_COLOURS = {"higher": "green", "lower": "red", "not told apart": "dim"}


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="What `pard2 bench --json` wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="The same of another draft, version or day.")],
    any_machine: Annotated[bool, typer.Option("--any-machine", help="Compare speed-ups of different machines or models, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which acceptance lengths and speed-ups of B differ from those of A by more than chance."""
    with working("comparing"):
        from pard2.bench.compare import compare as run
        from pard2.bench.entries import read_apart

        a, b = read_apart((first, second))
        found = run(a, b, any_machine)
    only = {a.name: found.only_a, b.name: found.only_b}
    if as_json:
        told = {"a": a.name, "b": b.name, "notes": found.notes, "differences": [one.as_dict() for one in found.differences]}
        typer.echo(json.dumps(told | {"only": {name: [{"suite": suite} | one.as_dict() for suite, one in keys] for name, keys in only.items()}}))
        return
    out = output_console()
    out.print(f"A: {printable(a.name)}, B: {printable(b.name)}", markup=False)
    for title, table in _tables(found.differences):
        out.print(f"\n{title}", style="bold", markup=False)
        out.print(table)
    print_note(*found.notes)
    for name, keys in only.items():
        named = [_named(key) for key in keys if key[1].method != PLAIN]
        more = f"; and {len(named) - _NAMED} more, which --json lists" if len(named) > _NAMED else ""
        print_note(*([f"only in {name}: {'; '.join(named[:_NAMED])}{more}"] if named else []))


def _tables(found: "list[Difference]") -> "Iterator[tuple[str, Table]]":
    """A title and a table for each figure, suite, and what else varies of batch size and temperature."""
    several_ks = len({one.configuration.draft_tokens for one in found}) > 1
    heads = [(one.figure, one.suite, one.configuration.batch_size, one.configuration.temperature) for one in found]
    batches, heats = (len({head[i] for head in heads}) > 1 for i in (2, 3))
    for head in sorted(set(heads), key=lambda head: (head[0], heads.index(head))):
        figure, suite, batch, heat = head
        told = (_FIGURES[figure], printable(suite), f"batch {batch}" * batches, f"temperature {heat:g}" * heats)
        lines = [one for one, its in zip(found, heads, strict=True) if its == head]
        yield ", ".join(filter(None, told)), _table(lines, several_ks)


def _table(lines: "list[Difference]", several_ks: bool) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from pard2.bench.entries import way

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for column in ("A", "B", "B - A (95 %)"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("B is", no_wrap=True)
    for one in lines:
        name = way(one.configuration.as_dict()) + (f", K {one.configuration.draft_tokens}" if several_ks else "")
        interval = "" if one.interval is None else f" ({one.interval[0]:+.2f} to {one.interval[1]:+.2f})"
        verdict = f"[{_COLOURS[one.verdict]}]{one.verdict}[/]"
        table.add_row(escape(name), f"{one.a:.2f}", f"{one.b:.2f}", f"{one.difference:+.2f}{interval}", verdict)
    return table


def _named(key: "Key") -> str:
    from pard2.bench.entries import way

    suite, one = key
    return f"{suite}, {way(one.as_dict())}, K {one.draft_tokens}, batch {one.batch_size}, temperature {one.temperature:g}"
