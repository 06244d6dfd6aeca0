"""How a draft gets better with training, as a picture: loss, acceptance and accuracy by depth, in SVG."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pard2.engine.methods import METHODS
from pard2.files import write_whole

_POINTS = 200  # of a run's own picture
_WIDTH, _LEFT, _RIGHT = 720, 64, 48
_PANEL, _TOP, _BOTTOM = 240, 40, 16  # the height of a panel, and what of it is above and below its lines
_COLOURS = ("#1f6feb", "#d1572a", "#2a9d5c", "#8250df", "#9a6700", "#57606a")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Means over some steps, at their last one.

    step, tokens, seconds: since the first run's start; seconds are of steps alone.
    loss: None where all of these steps were skipped.
    evaluated: acceptance length of real decoding by method, where these steps have an evaluation.
    """

    step: int
    tokens: int
    seconds: float
    loss: float | None
    teacher_forced_al: float
    accuracy_by_depth: list[float]
    evaluated: dict[str, float]


def read_curve(runs: Sequence[Path], apart: int | None = None) -> list[Point]:
    """The metrics of runs that went on from each other, each in its directory.

    apart: tokens from point to point, or a little more; by default as many as give a few hundred points. Each
        run ends with a point.
    """
    steps = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    if apart is None:
        apart = sum(step["tokens"] for run in steps for step in run) // _POINTS
    points: list[Point] = []
    tokens, seconds, taken = 0, 0.0, 0
    for run in steps:
        group: list[dict[str, Any]] = []
        for number, step in enumerate(run, 1):
            group.append(step)
            if sum(one["tokens"] for one in group) < apart and number < len(run):
                continue
            tokens += sum(one["tokens"] for one in group)
            seconds += sum(one["seconds"] for one in group)
            taken += len(group)
            points.append(_point(group, step=taken, tokens=tokens, seconds=round(seconds, 1)))
            group = []
    return points


def _point(group: list[dict[str, Any]], **where: Any) -> Point:
    losses = [step["loss"] for step in group if step["loss"] is not None]
    return Point(
        **where,
        loss=_mean(losses) if losses else None,
        teacher_forced_al=_mean([step["teacher_forced_al"] for step in group]),
        accuracy_by_depth=[_mean(depth) for depth in zip(*(step["accuracy_by_depth"] for step in group), strict=True)],
        evaluated={one["method"]: one["acceptance_length"] for step in group for one in step.get("evaluation", ())},
    )


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3)


def draw_curve(output: Path) -> None:
    """Write `output/curve.svg` anew from the run's metrics.

    Raises `Pard2Error` where it cannot be written.
    """
    points = read_curve([output])
    if points:
        write_whole(output / "curve.svg", picture({output.name: points}).encode())


def picture(curves: dict[str, list[Point]], by_tokens: bool = False) -> str:
    """An SVG of panels, one below the other: loss, acceptance length, and of a single curve accuracy.

    curves: by name; each has a point.
    by_tokens: against the tokens trained on, their axis logarithmic, in place of steps.
    """
    every = [point for points in curves.values() for point in points]
    across = _Axis([p.tokens if by_tokens else p.step for p in every], _LEFT, _WIDTH - _RIGHT, by_tokens)

    def lines(value: Callable[[Point], float | None]) -> list[str]:
        return [_line(_at(points, by_tokens), [value(p) for p in points], across, up, _COLOURS[n % 6]) for n, points in enumerate(curves.values())]

    parts, top = [], _TOP
    up = _Axis([p.loss for p in every if p.loss is not None] or [0.0], top + _PANEL - _BOTTOM - _TOP, top)
    parts += [*_frame("loss", up), *lines(lambda p: p.loss)]
    top += _PANEL
    lengths = [1.0, *(p.teacher_forced_al for p in every), *(al for p in every for al in p.evaluated.values())]
    up = _Axis(lengths, top + _PANEL - _BOTTOM - _TOP, top)
    rings = "; rings: held-out prompts decoded" if any(p.evaluated for p in every) else ""
    if any(len(p.evaluated) > 1 for p in every):
        rings += ", large TD, small TI"
    parts += [*_frame(f"acceptance length: line teacher-forced{rings}", up), *lines(lambda p: p.teacher_forced_al)]
    for number, points in enumerate(curves.values()):
        for x, point in zip(_at(points, by_tokens), points, strict=True):
            for method, length in point.evaluated.items():
                radius = 4 if METHODS[method].loads_projection else 2
                where = f'cx="{across.place(x):.1f}" cy="{up.place(length):.1f}"'
                parts.append(f'<circle {where} r="{radius}" fill="white" stroke="{_COLOURS[number % 6]}" stroke-width="1.5"/>')
    if len(curves) == 1:
        top += _PANEL
        up = _Axis([0.0, *(accuracy for p in every for accuracy in p.accuracy_by_depth)], top + _PANEL - _BOTTOM - _TOP, top)
        parts += [*_frame("accuracy by depth", up), *_depths(every, _at(every, by_tokens), across, up)]
    bottom = top + _PANEL - _TOP
    parts += [f'<text x="{across.place(tick):.1f}" y="{bottom + 8}" text-anchor="middle">{tick:,.0f}</text>' for tick in across.ticks()]
    parts.append(f'<text x="{_WIDTH / 2}" y="{bottom + 28}" text-anchor="middle">{"tokens trained on" if by_tokens else "step"}</text>')
    for number, name in enumerate(curves if len(curves) > 1 else ()):
        parts.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{_TOP + 16 * (number + 1)}" text-anchor="end" fill="{_COLOURS[number % 6]}">{escape(name)}</text>'
        )
    height = bottom + _TOP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>"]) + "\n"


def _at(points: list[Point], by_tokens: bool) -> list[int]:
    return [p.tokens if by_tokens else p.step for p in points]


class _Axis:
    """From values to places in the picture.

    start, end: places of the least and the greatest value, the latter rounded to a tick.
    """

    def __init__(self, values: Sequence[float], start: float, end: float, logarithmic: bool = False) -> None:
        self._start, self._end, self._logarithmic = start, end, logarithmic
        self._low, self._high = min(values), max(values)
        if logarithmic:
            return
        span = max(self._high - self._low, 1e-3 * max(1.0, abs(self._high)))
        most = span / (5 if start > end else 10)  # upwards fewer ticks than across
        power = 10.0 ** math.floor(math.log10(most))
        self._step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= most)
        if start > end:  # upwards: from tick to tick
            self._low = math.floor(self._low / self._step) * self._step
            self._high = max(self._low + self._step, math.ceil(self._high / self._step - 1e-9) * self._step)

    def place(self, value: float) -> float:
        scale = math.log10 if self._logarithmic else float
        low, high = scale(self._low), scale(self._high)
        return self._start + (scale(value) - low) / ((high - low) or 1.0) * (self._end - self._start)

    def ticks(self) -> list[float]:
        if self._logarithmic:
            powers = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
            return [tick for power in powers for digit in (1, 2, 5) if self._low <= (tick := digit * 10.0**power) <= self._high]
        first = math.ceil(self._low / self._step - 1e-9)
        return [n * self._step for n in range(first, math.floor(self._high / self._step + 1e-9) + 1)]


def _frame(title: str, up: _Axis) -> list[str]:
    """A panel's title and its horizontal lines with their values."""
    ticks = up.ticks()
    parts = [f'<text x="{_LEFT}" y="{up.place(ticks[-1]) - 12:.1f}">{escape(title)}</text>']
    for tick in ticks:
        y = up.place(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    return parts


def _line(xs: Sequence[float], values: Sequence[float | None], across: _Axis, up: _Axis, colour: str, more: str = "") -> str:
    places = [f"{across.place(x):.1f},{up.place(value):.1f}" for x, value in zip(xs, values, strict=True) if value is not None]
    return f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.5"{more}/>'


def _depths(points: list[Point], xs: list[int], across: _Axis, up: _Axis) -> list[str]:
    """A line for each depth, the deeper the paler; some are named at their ends."""
    depths, parts, free = len(points[0].accuracy_by_depth), [], -math.inf
    for depth in range(depths):
        values = [p.accuracy_by_depth[depth] for p in points]
        pale = f' stroke-opacity="{1 - 0.7 * depth / depths:.2f}"'
        parts.append(_line(xs, values, across, up, _COLOURS[0], pale))
        y = up.place(values[-1])
        if y >= free:  # else it would stand over the name before
            parts.append(f'<text x="{_WIDTH - _RIGHT + 6}" y="{y + 4:.1f}">{depth}</text>')
            free = y + 12
    return parts
