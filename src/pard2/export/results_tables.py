"""What was measured of a draft, as tables of its card: acceptance, and speed."""

import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pard2.bench.summary import Result
from pard2.engine.methods import METHODS
from pard2.export.draft_results import DraftResults
from pard2.export.machine import machine, software
from pard2.export.markdown import code, escape, table
from pard2.export.training_record import without_places

_POSITIONS = 8  # that are shown; further ones are seldom reached


class _Column(NamedTuple):
    """same: how it is told above the table where all lines have it in common; None where it always stays."""

    title: str
    text: Callable[[Result], str]
    same: str | None = None


_SUITE = _Column("suite", lambda r: f"{escape(r['suite'])} ({r['prompts']})")
_METHOD = _Column("method", lambda r: METHODS[r["method"]].title)
_CONDITIONS = (
    _Column("temperature", lambda r: f"{r['temperature']:g}", "temperature {}"),
    _Column("batch", lambda r: str(r["batch_size"]), "batch {}"),
    _Column("K", lambda r: str(r["draft_tokens"]), "K = {}"),
    _Column("tree", lambda r: str(r["tree"] or "none"), "trees: {}"),
)


def acceptance(measured: DraftResults) -> str:
    """Tokens that a cycle emits, and the share accepted by position, for each suite and configuration."""
    figures = (
        _Column("AL (95 %)", lambda r: _with_interval(r, "acceptance_length")),
        _Column("accepted at position 1, 2, ..", _by_position),
    )
    plan, unknown = measured.plan, "; the file names the draft, and does not say which weights it had then"
    length = f"up to {plan['max_new_tokens']} new tokens" if "max_new_tokens" in plan else ""
    where = (f"target {plan.get('target')}", machine(measured.meta, plan.get("device")), str(plan.get("dtype")), length)
    return _table(measured, figures, where, "" if measured.identified else unknown)


def speed(measured: DraftResults) -> str:
    """Tokens per second beside those of plain decoding, and in how many answers the text was the same."""

    def plain(result: Result) -> str:
        found = measured.plain_of(result)
        return "" if found is None else _rate(found)

    figures = (
        _Column("plain tokens/s", plain),
        _Column("tokens/s", _rate),
        _Column("speed-up (95 %)", lambda r: _with_interval(r, "speedup", "x")),
        _Column("same text", lambda r: f"{r['equal_outputs']} of {r['prompts']}"),
    )
    plan = measured.plan
    weights = f"the target's weights in {plan['weights']}" if plan.get("weights") not in (None, "auto") else ""
    where = (machine(measured.meta, plan.get("device")), str(plan.get("dtype")), weights, software(measured.meta))
    return _table(measured, figures, where)


def command(measured: DraftResults) -> str:
    """What made the file, without the places of this machine."""
    words = measured.meta.get("argv")
    return " ".join(shlex.quote(str(word)) for word in without_places(words)) if isinstance(words, list) else ""


def _table(measured: DraftResults, figures: Sequence[_Column], where: Sequence[str], doubt: str = "") -> str:
    """What all lines have in common stands above them.

    where: what else does, nothing of it Markdown. doubt: ends that line.
    """
    results = measured.results
    varying = [column for column in _CONDITIONS if len({column.text(one) for one in results}) > 1]
    same = [column.same.format(column.text(results[0])) for column in _CONDITIONS if column not in varying and column.text(results[0]) != "none"]
    columns = [_SUITE, _METHOD, *varying, *figures]
    lines = table([column.title for column in columns], [[column.text(one) for column in columns] for one in results])
    return f"{code(measured.name)}: {escape(', '.join(filter(None, [*where, *same])))}{doubt}.\n\n{lines}"


def _rate(result: Result) -> str:
    return f"{result['tokens_per_second']:.0f}" if result["tokens_per_second"] >= 100 else f"{result['tokens_per_second']:.1f}"


def _with_interval(result: Result, key: str, unit: str = "") -> str:
    value, interval = result[key], result[f"{key}_interval"]
    if value is None:
        return ""
    return f"{value:.2f}{unit}" + ("" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})")


def _by_position(result: Result) -> str:
    shares = result["accepted_by_position"]
    return ", ".join(f"{share:.2f}" for share in shares[:_POSITIONS]) + (", .." if len(shares) > _POSITIONS else "")
