"""`pard2 bench compare`: what differs between two result files beyond chance."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pard2.cli.console import print_note, working
from pard2.cli.options import JsonOption
from pard2.cli.output import output_console
from pard2.engine.methods import PLAIN
from pard2.errors import Pard2Error
from pard2.reading import printable

if TYPE_CHECKING:
    from rich.table import Table

    from pard2.bench.compare import Difference, Key

_NAMED = 6  # configurations that one file lacks, by name
_COLOURS = {"higher": "green", "lower": "red", "not told apart": "dim"}


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="What `pard2 bench --json` wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="The same of another draft, version or day.")],
    any_machine: Annotated[bool, typer.Option("--any-machine", help="Compare speed-ups of different machines or models, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which acceptance lengths and speed-ups of B differ from those of A by more than chance."""
    if first.resolve() == second.resolve():
        raise Pard2Error(f"{first} is named twice; name two files")
    with working("comparing"):
        from pard2.bench.compare import compare as run
        from pard2.bench.entries import different_names
        from pard2.bench.read_results import read_results

        a, b = different_names([read_results(path) for path in (first, second)], [first, second])
        found = run(a, b, any_machine)
    only = {a.name: found.only_a, b.name: found.only_b}
    if as_json:
        told = {"a": a.name, "b": b.name, "notes": found.notes, "differences": [one.as_dict() for one in found.differences]}
        typer.echo(json.dumps(told | {"only": {name: [{"suite": suite} | one.as_dict() for suite, one in keys] for name, keys in only.items()}}))
        return
    out = output_console()
    out.print(f"A: {printable(a.name)}, B: {printable(b.name)}", markup=False)
    for figure, title in (("acceptance_length", "acceptance length"), ("speedup", "speed-up")):
        lines = [one for one in found.differences if one.figure == figure]
        if lines:
            out.print(f"\n{title}", style="bold")
            out.print(_table(lines))
    print_note(*found.notes)
    for name, keys in only.items():
        named = [_named(key) for key in keys if key[1].method != PLAIN]
        more = f"; and {len(named) - _NAMED} more, which --json lists" if len(named) > _NAMED else ""
        print_note(*([f"only in {name}: {'; '.join(named[:_NAMED])}{more}"] if named else []))


def _table(lines: "list[Difference]") -> "Table":
    """Suite and conditions where they vary; else all lines would say the same."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from pard2.bench.entries import way

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    conditions = {
        "suite": [printable(one.suite) for one in lines],
        "": [way(one.configuration.as_dict()) for one in lines],
        "batch": [str(one.configuration.batch_size) for one in lines],
        "K": [str(one.configuration.draft_tokens) for one in lines],
        "temp.": [f"{one.configuration.temperature:g}" for one in lines],
    }
    shown = {title: texts for title, texts in conditions.items() if title in ("suite", "") or len(set(texts)) > 1}
    for title in shown:
        table.add_column(title, overflow="fold")
    for title in ("A", "B", "B - A (95 %)"):
        table.add_column(title, justify="right")
    table.add_column("B is")
    for one, *texts in zip(lines, *shown.values(), strict=True):
        interval = "" if one.interval is None else f" ({one.interval[0]:+.2f} to {one.interval[1]:+.2f})"
        table.add_row(
            *map(escape, texts), f"{one.a:.2f}", f"{one.b:.2f}", f"{one.difference:+.2f}{interval}", f"[{_COLOURS[one.verdict]}]{one.verdict}[/]"
        )
    return table


def _named(key: "Key") -> str:
    from pard2.bench.entries import way

    suite, one = key
    return f"{suite}, {way(one.as_dict())}, K {one.draft_tokens}, batch {one.batch_size}, temperature {one.temperature:g}"
