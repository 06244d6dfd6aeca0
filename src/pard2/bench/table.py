"""Results as a table: for a terminal, as Markdown, and as CSV."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pard2.bench.summary import Result
from pard2.engine.methods import PLAIN
from pard2.reading import printable


class Column(NamedTuple):
    """number: whether its texts stand at the right."""

    title: str
    text: Callable[[Result], str]
    number: bool = False


def _cycle_times(result: Result) -> str:
    """Milliseconds of a cycle in the two models."""
    draft, verify = (1000 * result[key] / max(1, result["cycles"]) for key in ("draft_seconds", "verify_seconds"))
    return f"{draft:.1f} + {verify:.1f} ms"


def _against_base(text: Callable[[Result], str]) -> Callable[[Result], str]:
    """Nothing for the base, which has nothing to be compared with."""
    return lambda result: "" if result["method"] == PLAIN else text(result)


def _with_interval(key: str, unit: str = "") -> Callable[[Result], str]:
    def text(result: Result) -> str:
        value, interval = result[key], result[f"{key}_interval"]
        if value is None:
            return ""
        return f"{value:.2f}{unit}" + ("" if interval is None else f" ({interval[0]:.2f}-{interval[1]:.2f})")

    return _against_base(text)


# What a result was measured under: a column where it varies, else a word of the heading.
_CONDITIONS = {
    "file": (Column("file", lambda r: r["file"]), "{}"),  # of results of several files
    "suite": (Column("suite", lambda r: r["suite"]), "{}"),
    "draft": (Column("draft", lambda r: r.get("draft") or ""), "draft {}"),
    "method": (Column("method", lambda r: r["method"]), ""),
    "batch_size": (Column("batch", lambda r: str(r["batch_size"]), True), "batch {}"),
    "draft_tokens": (Column("K", _against_base(lambda r: str(r["draft_tokens"])), True), "K {}"),
    "tree": (Column("tree", _against_base(lambda r: str(r["tree"] or "")), True), "trees of {}"),
    "temperature": (Column("temp.", lambda r: f"{r['temperature']:g}", True), "temperature {:g}"),
}
_FIGURES = (
    Column("tokens/s", lambda r: f"{r['tokens_per_second']:.1f}", True),
    Column("speed-up (95 %)", _with_interval("speedup", "x")),
    Column("AL (95 %)", _with_interval("acceptance_length")),
    Column("same\ntext", _against_base(lambda r: f"{r['equal_outputs']}/{r['prompts']}"), True),
)
# Shown where there is room: the time of a cycle in the two models, the share of it outside of them, the time
# of a prompt, and the memory beside the weights.
_MORE = (
    Column("draft + verify", _cycle_times, True),
    Column("other", lambda r: "" if r["other_share"] is None else f"{r['other_share']:.1%}", True),
    Column("prefill", lambda r: f"{1000 * r['prefill_seconds'] / r['answers']:.0f} ms", True),
    Column("memory", lambda r: "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 1e6:.0f} MB", True),
)
FIGURES = (*_FIGURES, *_MORE)
_APART = ("suite", "temperature", "batch_size")  # what is told in tables of its own where one table is too wide


def results_table(results: Sequence[Result], width: int, title: str = "") -> Group:
    """A line for each result, in one table or in several, with all that does not vary in a heading.

    width: columns of the terminal
    title: what the heading says first
    """
    return Group(*([Text(printable(title))] if title else []), *_tables(results, width))


def _tables(results: Sequence[Result], width: int) -> Iterator[Text | Table]:
    varying = _varying(results)
    columns = [column for key, (column, _) in _CONDITIONS.items() if key in varying]
    tables = [_table(results, (*columns, *_FIGURES, *_MORE[:more])) for more in range(len(_MORE), -1, -1)]
    fitting = next((table for table in tables if _width(table) <= width), None)
    apart = next((key for key in _APART if key in varying), None)
    if fitting is None and apart is not None:
        for number, value in enumerate(_values(results, apart)):
            if number:
                yield Text()
            yield from _tables([result for result in results if result[apart] == value], width)
        return
    if heading := _heading(results, varying):
        yield Text(printable(heading), style="bold")
    yield fitting or tables[-1]


def _varying(results: Sequence[Result]) -> set[str]:
    return {key for key in _CONDITIONS if key == "method" or len(_values(results, key)) > 1}


def _values(results: Sequence[Result], key: str) -> list:
    """The different ones. Plain decoding has no draft, and proposes no tokens."""
    own = (result for result in results if result["method"] != PLAIN or key not in ("draft", "draft_tokens", "tree"))
    return list(dict.fromkeys(result[key] for result in own if key in result))


def _heading(results: Sequence[Result], varying: set[str]) -> str:
    same = {key: _values(results, key) for key in _CONDITIONS if key not in varying}
    return ", ".join(_CONDITIONS[key][1].format(*values) for key, values in same.items() if values and (key != "tree" or values[0]))


def _table(results: Sequence[Result], columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.title, justify="right" if column.number else "left", overflow="fold")
    for result in results:
        table.add_row(*(escape(printable(column.text(result))) for column in columns))
    return table


def _width(table: Table) -> int:
    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum


def results_markdown(results: Sequence[Result], title: str = "") -> str:
    """Every column, a line for each result, and a heading as above a terminal's table."""
    varying = _varying(results)
    columns = [*(column for key, (column, _) in _CONDITIONS.items() if key in varying), *FIGURES]
    lines = [
        [column.title.replace("\n", " ") for column in columns],
        ["---:" if column.number else "---" for column in columns],
        *([printable(column.text(result)).replace("|", "\\|") for column in columns] for result in results),
    ]
    heading = "; ".join(filter(None, (title, _heading(results, varying))))
    return "\n".join([*([printable(heading), ""] if heading else []), *(f"| {' | '.join(line)} |" for line in lines)])


def results_csv(results: Sequence[Result]) -> str:
    """All that a file of results holds: an interval in two columns, shares by position with spaces."""
    file = io.StringIO()
    rows = [_flat(result) for result in results]
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().removesuffix("\n")


def _flat(result: Result) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in result.items():
        if key.endswith("_interval"):
            name = key.removesuffix("_interval")
            flat[f"{name}_low"], flat[f"{name}_high"] = value or (None, None)
        else:
            flat[key] = " ".join(map(str, value)) if isinstance(value, list) else printable(value) if isinstance(value, str) else value
    return flat
