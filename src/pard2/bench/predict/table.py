"""Predictions as tables for a terminal, and what must be known to read them."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pard2.bench.predict.predictions import LeftOut, Prediction, Predictions
from pard2.engine.methods import PLAIN
from pard2.reading import printable
from pard2.units import counted


class Column(NamedTuple):
    title: str
    text: Callable[[Prediction], str]


def _k(one: Prediction) -> str:
    k = one.configuration.draft_tokens
    return f"{'*' if one.best else ''}{'plain' if one.configuration.method == PLAIN else k}"


def _length(one: Prediction) -> str:
    interval = one.speed.length.interval
    return f"{one.speed.length.value:.2f}" + ("" if interval is None else f" ({interval[0]:.2f}-{interval[1]:.2f})")


def _cycle(one: Prediction) -> str:
    seconds = one.speed.seconds
    return " + ".join(f"{1000 * part:.1f}" for part in (seconds.draft, seconds.verify, seconds.other))


def _error(one: Prediction) -> str:
    error = None if one.measured is None else one.measured.error
    return "" if error is None or one.measured is None else f"{error:+.1%}{'~' if one.measured.own_acceptance else ''}"


_BATCH = Column("batch", lambda one: str(one.configuration.batch_size))
_K = Column("K", _k)
_TREE = Column("tree", lambda one: str(one.configuration.tree or ""))
_INTERVAL, _SHORT = Column("AL (95 %)", _length), Column("AL", lambda one: f"{one.speed.length.value:.2f}")
_FIGURES = (
    Column("ms: draft +\nverify + other", _cycle),
    Column("tokens/s", lambda one: f"{one.speed.tokens_per_second:.1f}"),
    Column("speed-up", lambda one: f"{one.speedup:.2f}x"),
)
_MEASURED = (
    Column("measured", lambda one: "" if one.measured is None else f"{one.measured.tokens_per_second:.1f}"),
    Column("error", _error),
)


def predictions_table(found: Predictions, width: int) -> Group:
    """A table for each suite, method and temperature, under a heading.

    width: columns of the terminal
    """
    return Group(*_parts(found, width))


def _parts(found: Predictions, width: int) -> Iterator[Text | Table]:
    plan = found.results.plan
    times = f"times of {found.times.name}" if found.times else f"{plan['dtype']} on {plan['device']}"
    yield Text(printable(f"{found.results.name}: {plan['target']}, {times}"))
    for group, lines in found.groups.items():
        draft = f" of {group.way.draft}" if group.way.draft else ""
        yield Text()
        yield Text(printable(f"{group.suite}, {group.way.method}{draft}, temperature {group.temperature:g}"), style="bold")
        columns = [_BATCH, _K, *([_TREE] if any(one.configuration.tree for one in lines) else [])]
        rest = [*_FIGURES, *(_MEASURED if any(one.measured for one in lines) else ())]
        tables = [_table(lines, [*columns, length, *rest]) for length in (_INTERVAL, _SHORT)]
        yield next((table for table in tables if _width(table) <= width), tables[-1])
        yield from (Text(printable(note)) for note in (*_notes(lines), *(f"left out: {one}" for one in found.skipped.get(group, ()))))
    yield Text()
    yield Text("* the most tokens/s of its batch size")
    if found.left_out is not None:
        yield Text(_sum_up(found.left_out))


def _notes(lines: Sequence[Prediction]) -> Iterator[str]:
    """Of a group: what its acceptance is known from."""
    chosen = [one for one in lines if one.speed.length.at_least is not None]
    if chosen:
        last = max(chosen, key=lambda one: one.speed.length.value)
        bounds = f"at K {last.configuration.draft_tokens} between {last.speed.length.at_least:.2f} and {last.speed.length.value:.2f}"
        yield f"AL is of the cycles in which auto proposed so many, the easier ones: {bounds}"


def _sum_up(left_out: LeftOut) -> str:
    if not left_out.errors:
        return "error: none could be predicted from the others"
    sizes = [abs(error) for error in left_out.errors]
    own = f"; ~ {left_out.own_acceptance} with their own AL, so of the times alone" if left_out.own_acceptance else ""
    impossible = f"; {left_out.impossible} could not be" if left_out.impossible else ""
    return (
        f"error: each of {counted(len(sizes), 'measured configuration')} predicted from all others: "
        f"median {median(sizes):.1%}, largest {max(sizes):.1%}{own}{impossible}"
    )


def _table(lines: Sequence[Prediction], columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.title, justify="right", overflow="fold")
    before = None
    for one in lines:
        if before not in (None, one.configuration.batch_size):
            table.add_section()
        before = one.configuration.batch_size
        table.add_row(*(column.text(one) for column in columns))
    return table


def _width(table: Table) -> int:
    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum
