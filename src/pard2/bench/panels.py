"""The panels of a report, each from the results of one suite under the same conditions.

Every function takes a title, the results, and how each way to decode looks; it returns
None where the results have nothing for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from pard2.bench.canvas import COLOURS, INK, TEXT_LINE, Look, legend, line_axes, named_bars
from pard2.bench.entries import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST_CYCLES = 30  # that a share is taken of
_NEAR = 0.12  # points of one batch size that are as near as that, of their own values, share a number


def speed(title: str, entries: Sequence[Entry], looks: Mapping[str, Look]) -> "Figure":
    figure, both = named_bars(title, [entry.name for entry in entries], 2)
    for axes, key, label, unit in zip(both, ("speedup", "acceptance_length"), ("speed-up", "acceptance length"), ("x", ""), strict=True):
        highest = 1.0
        for place, entry in enumerate(entries):
            value, interval = entry.result[key], entry.result[f"{key}_interval"]
            if value is None:
                continue
            axes.barh(place, value, 0.34, color=looks[entry.way]["color"])
            if interval is not None:
                axes.plot(interval, [place, place], color=INK, linewidth=1)
            end = max(value, *(interval or ()), 0.0)
            axes.text(end, place, f" {value:.2f}{unit}", va="center")
            highest = max(highest, end)
        places = range(len(entries))
        axes.vlines([1] * len(entries), [place - 0.22 for place in places], [place + 0.22 for place in places], INK, linewidth=0.8)
        axes.set_xlim(0, 1.35 * highest)  # room for the number behind the longest bar
        axes.set_xlabel(label)
    return figure


def times(title: str, entries: Sequence[Entry], looks: Mapping[str, Look]) -> "Figure | None":
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, []).append(entry)
    cycles = {name: sum(entry.result["cycles"] for entry in some) for name, some in by_name.items()}
    names = [name for name in by_name if cycles[name]]
    if not names:
        return None
    figure, (axes,) = named_bars(title, names, 1, below=0.5 + TEXT_LINE)
    longest = 0.0
    for place, name in enumerate(names):
        start = 0.0
        for key, colour in zip(("draft", "verify", "other"), (COLOURS[1], COLOURS[0], COLOURS[-1]), strict=True):
            spent = 1000 * sum(entry.result[f"{key}_seconds"] for entry in by_name[name]) / cycles[name]
            axes.barh(place, spent, 0.34, left=start, color=colour, label=key if place == 0 else None)
            start += spent
        axes.text(start, place, f" {start:.1f} ms", va="center")
        longest = max(longest, start)
    axes.set_xlim(0, 1.25 * longest or 1)
    axes.set_xlabel("milliseconds a cycle")
    legend(figure, axes, 3)
    return figure


def positions(title: str, entries: Sequence[Entry], looks: Mapping[str, Look]) -> "Figure | None":
    shown: dict[str, Entry] = {}
    for entry in entries:
        if _told(entry):
            shown[entry.way] = max(shown.get(entry.way, entry), entry, key=lambda one: _number(one.result["draft_tokens"]))
    if not shown:
        return None
    figure, axes = line_axes(title, len(shown), "position", "accepted")
    for name, entry in shown.items():
        shares = _told(entry)
        axes.plot(range(1, len(shares) + 1), shares, **looks[name])
    axes.set_ylim(0, 1.03)
    axes.locator_params("x", nbins=9, integer=True)
    legend(figure, axes)
    return figure


def _told(entry: Entry) -> list[float]:
    """Shares by position, as far as enough cycles proposed something there."""
    shares = zip(entry.result["accepted_by_position"], entry.proposed_at, strict=True)
    return [share for share, _ in takewhile(lambda pair: pair[1] >= FEWEST_CYCLES, shares)]


def lengths(title: str, entries: Sequence[Entry], looks: Mapping[str, Look]) -> "Figure | None":
    measured = [e for e in entries if _number(e.result["draft_tokens"]) and e.result["acceptance_length"] is not None]
    lines = {name: some for name, some in _by_way(measured).items() if len({entry.result["draft_tokens"] for entry in some}) > 1}
    if not lines:
        return None
    figure, axes = line_axes(title, len(lines), "K", "acceptance length")
    for name, some in lines.items():
        some = sorted(some, key=lambda entry: entry.result["draft_tokens"])
        ks, values = ([entry.result[key] for entry in some] for key in ("draft_tokens", "acceptance_length"))
        axes.plot(ks, values, **looks[name])
        for k, entry in zip(ks, some, strict=True):
            if interval := entry.result["acceptance_length_interval"]:
                axes.plot([k, k], interval, color=looks[name]["color"], linewidth=1)
    axes.set_ylim(bottom=1)
    axes.locator_params("x", nbins=9, integer=True)
    legend(figure, axes)
    return figure


def throughput(title: str, entries: Sequence[Entry], looks: Mapping[str, Look]) -> "Figure | None":
    lines: dict[str, dict[int, float]] = {}
    for entry in entries:
        rates, size = lines.setdefault(entry.way, {}), entry.batch_size
        rates[size] = max(rates.get(size, 0.0), entry.result["tokens_per_second"])
    lines = {name: rates for name, rates in lines.items() if len(rates) > 1 and all(rates.values())}
    if not lines:
        return None
    figure, axes = line_axes(title, len(lines), "ms a token of one sequence", "tokens/s of the batch")
    labelled: list[tuple[int, float, float]] = []
    for name, rates in lines.items():
        points = [(size, 1000 * size / rates[size], rates[size]) for size in sorted(rates)]
        axes.plot([x for _, x, _ in points], [y for _, _, y in points], **looks[name])
        for size, x, y in points:
            if not any(size == other and abs(x / ox - 1) + abs(y / oy - 1) < _NEAR for other, ox, oy in labelled):
                axes.annotate(str(size), (x, y), (3, 4), textcoords="offset points", fontsize=7.5)
                labelled.append((size, x, y))
    axes.margins(0.08, 0.12)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    legend(figure, axes)
    return figure


def _by_way(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.way, []).append(entry)
    return found


def _number(draft_tokens: int | str) -> int:
    """K; 0 for `auto`, which is of no length."""
    return draft_tokens if isinstance(draft_tokens, int) else 0
