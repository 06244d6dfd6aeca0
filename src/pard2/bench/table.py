"""Results as a table."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from pard2.bench.report import Result
from pard2.reading import printable

_COLUMNS = ("suite", "method", "batch", "K", "temp.", "tokens/s", "speed-up (95 %)", "AL (95 %)", "draft + verify", "other", "same text")


def results_table(results: Sequence[Result]) -> Table:
    """A line for each result.

    In the columns draft and verify stand milliseconds of a cycle, under other the share of it outside the two
    models.
    """
    table = Table(*_COLUMNS)
    for r in results:
        draft, verify = (1000 * r[key] / max(1, r["cycles"]) for key in ("draft_seconds", "verify_seconds"))
        table.add_row(
            *(escape(printable(str(r[key]))) for key in ("suite", "method", "batch_size", "draft_tokens")),
            f"{r['temperature']:g}",
            f"{r['tokens_per_second']:.1f}",
            _with_interval(r, "speedup", "x"),
            _with_interval(r, "acceptance_length"),
            f"{draft:.1f} + {verify:.1f} ms",
            "" if r["other_share"] is None else f"{r['other_share']:.1%}",
            f"{r['equal_outputs']}/{r['prompts']}",
        )
    return table


def _with_interval(result: Result, key: str, unit: str = "") -> str:
    value, interval = result[key], result[f"{key}_interval"]
    if value is None:
        return ""
    return f"{value:.2f}{unit}" + ("" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})")
