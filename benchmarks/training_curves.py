r"""How a draft gets better with training: the acceptance that its runs forecast, against the tokens that they
have seen, as a table and a picture.

A run that went on from another's draft is named behind it, with a plus. Reads the metrics that `pard2 train`
left; evaluations by real decoding, where a run made any, are marked in the picture.

    python benchmarks/training_curves.py "muon=runs/a+runs/b" "adamw=runs/c" --json training_curves.json \
        --svg training_curves.svg
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from pard2.bench.result_file import write_result
from pard2.environment import meta

_WIDTH, _HEIGHT, _MARGIN = 720, 420, 56
_COLOURS = ("#1f6feb", "#d1572a", "#2a9d5c", "#8250df", "#9a6700", "#57606a")


@dataclass(frozen=True)
class Point:
    """Means over some steps, at their last one.

    tokens, seconds: since the first run's start; seconds are of steps alone.
    """

    tokens: int
    seconds: float
    loss: float
    teacher_forced_al: float
    accuracy_by_depth: list[float]
    evaluated: dict[str, float]


def curve(runs: list[Path], apart: int) -> list[Point]:
    """A point every `apart` tokens or a little more and at each run's end, over runs
    that went on from each other."""
    points: list[Point] = []
    tokens, seconds = 0, 0.0
    group: list[dict[str, Any]] = []
    for run in runs:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        for number, line in enumerate(lines, 1):
            group.append(json.loads(line))
            if sum(step["tokens"] for step in group) < apart and number < len(lines):
                continue
            tokens += sum(step["tokens"] for step in group)
            seconds += sum(step["seconds"] for step in group)
            by_depth = zip(*(step["accuracy_by_depth"] for step in group), strict=True)
            points.append(
                Point(
                    tokens,
                    round(seconds, 1),
                    _mean([step["loss"] for step in group]),
                    _mean([step["teacher_forced_al"] for step in group]),
                    [_mean(depth) for depth in by_depth],
                    {e["method"]: e["acceptance_length"] for step in group for e in step.get("evaluation", ())},
                )
            )
            group = []
    return points


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3)


def picture(curves: dict[str, list[Point]]) -> str:
    """An SVG: tokens on a logarithmic axis, teacher-forced acceptance length upwards; rings are of real
    decoding, target-dependent."""
    every = [point for points in curves.values() for point in points]
    low, high = math.log10(min(p.tokens for p in every)), math.log10(max(p.tokens for p in every))
    heights = [p.teacher_forced_al for p in every] + [al for p in every for al in p.evaluated.values()]
    top = math.ceil(max(heights) * 5) / 5

    def x(tokens: int) -> float:
        return _MARGIN + (math.log10(tokens) - low) / (high - low) * (_WIDTH - 2 * _MARGIN)

    def y(length: float) -> float:
        return _HEIGHT - _MARGIN - (length - 1) / (top - 1) * (_HEIGHT - 2 * _MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for step in range(round((top - 1) * 5) + 1):
        length = 1 + step / 5
        parts.append(f'<path d="M{_MARGIN} {y(length):.1f}H{_WIDTH - _MARGIN}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{_MARGIN - 8}" y="{y(length) + 4:.1f}" text-anchor="end">{length:.1f}</text>')
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        for digit in (1, 2, 5):
            tokens = digit * 10**exponent
            if low <= math.log10(tokens) <= high:
                parts.append(f'<text x="{x(tokens):.1f}" y="{_HEIGHT - _MARGIN + 18}" text-anchor="middle">{tokens:,}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">tokens trained on</text>')
    parts.append(f'<text x="{_MARGIN}" y="24">acceptance length: lines teacher-forced, rings decoded (TD)</text>')
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x(p.tokens):.1f},{y(p.teacher_forced_al):.1f}" for p in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for p in points:
            if "pard2-td" in p.evaluated:
                parts.append(f'<circle cx="{x(p.tokens):.1f}" cy="{y(p.evaluated["pard2-td"]):.1f}" r="4" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="{_MARGIN + 12}" y="{48 + 16 * number}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[+RUN..]", help="directories of runs, one curve each")
    parser.add_argument("--tokens", type=int, default=50_000, help="from point to point")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    about = meta()
    named = dict(run.split("=", 1) for run in args.runs)
    about["argv"] = [about["argv"][0], *(f"{name}=..." for name in named)]  # where the runs lay matters to nobody
    curves = {name: curve([Path(part) for part in parts.split("+")], args.tokens) for name, parts in named.items()}
    results = [{"run": name} | asdict(point) for name, points in curves.items() for point in points]
    write_result(args.json, about, results, tokens=args.tokens)
    if args.svg is not None:
        args.svg.write_text(picture(curves))
    for name, points in curves.items():
        print(name)
        for p in points:
            depths = " ".join(f"{accuracy:.2f}" for accuracy in p.accuracy_by_depth)
            seen = f"{p.tokens:>10,} tokens {p.seconds:>7,.0f} s"
            print(f"{seen}  loss {p.loss:.2f}  AL {p.teacher_forced_al:.2f}  by depth {depths}  {p.evaluated or ''}")


if __name__ == "__main__":
    main()
