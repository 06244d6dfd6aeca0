"""How long a model's pass takes, by its rows, from a few passes that were measured.

The engine's own `PassTimes` learns the same while it decodes, from single passes that may be held up; here
each point is a mean of many passes, and is kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pard2.intervals import Array

FARTHER = 1.25  # times the most rows, or sequences, measured: as far as the line is drawn on


class Passes(NamedTuple):
    """Passes of one size.

    rows: of all sequences together
    sequences: that take part
    seconds: of one pass
    weight: how much they count against others
    widest: rows of the largest of them, where the others are smaller and `rows` is the mean
    """

    rows: float
    sequences: float
    seconds: float
    weight: float = 1.0
    widest: float = 0.0


class TimeCurve:
    """Seconds of a pass by its rows and sequences:

        T(rows, sequences) = f(rows) + g (sequences - 1)

    f is piecewise linear through the points measured, and never falls: where more rows took less time, the
    points are averaged. g >= 0 is what each further sequence costs by itself, the reading of its own keys and
    values: the least that leaves f as little to average as possible, so 0 where rows alone explain the times.
    Outside of the points f goes on with its overall slope, up to `FARTHER` times the most rows, and towards 0
    rows never below half of the first point: a pass reads its weights whatever its rows.
    """

    def __init__(self, points: Sequence[Passes]) -> None:
        """Raises `ValueError` without a point."""
        if not points:
            raise ValueError("no pass has been measured")
        self._points = sorted(points)
        self.least, self.most = self._points[0].rows, max(max(one.rows, one.widest) for one in self._points)
        self.most_sequences = max(one.sequences for one in self._points)
        self._each = min(self._candidates(), key=lambda each: (round(self._averaged(each), 12), each))
        rows, seconds, _ = self._level(self._each)
        slope = (seconds[-1] - seconds[0]) / (rows[-1] - rows[0]) if len(rows) > 1 else 0.0
        left = max(seconds[0] - slope * rows[0], seconds[0] / 2)
        right = seconds[-1] + slope * (FARTHER * self.most - rows[-1])
        self._knots = np.array([0.0, *rows, FARTHER * self.most]), np.array([left, *seconds, right])

    def seconds(self, rows: float, sequences: float) -> float:
        """Of a pass; beyond `FARTHER` times the most rows the curve says nothing, see `check`."""
        return float(np.interp(rows, *self._knots)) + self._each * (sequences - 1)

    def check(self, rows: float, sequences: float) -> None:
        """Raises `ValueError` for a pass that is too large to be told of; its message ends the sentence."""
        for number, what, most in ((rows, "rows", self.most), (sequences, "sequences", self.most_sequences)):
            if number > FARTHER * most * (1 + 1e-9):
                raise ValueError(f"up to {most:.0f} {what}, which tell of {FARTHER * most:.0f} at most, not of {number:.0f}")

    def _candidates(self) -> list[float]:
        """Costs of a sequence that could explain why fewer rows, of more sequences, took longer."""
        most = min((one.seconds / 2 / (one.sequences - 1) for one in self._points if one.sequences > 1), default=0.0)
        found = [0.0]
        for number, few in enumerate(self._points):
            for many in self._points[number + 1 :]:
                if few.seconds > many.seconds and few.sequences > many.sequences:
                    found.append((few.seconds - many.seconds) / (few.sequences - many.sequences))
        return [min(each, most) for each in found]

    def _averaged(self, each: float) -> float:
        """How much of the times is lost where f averages, as a share."""
        _, _, lost = self._level(each)
        return lost / sum(one.weight * one.seconds**2 for one in self._points)

    def _level(self, each: float) -> tuple[Array, Array, float]:
        """(rows, seconds, squared seconds lost) of f for a cost of each further sequence: neighbours are
        pooled until none is below the one before (pool adjacent violators).
        """
        rows = np.array([one.rows for one in self._points])
        own = np.array([one.seconds - each * (one.sequences - 1) for one in self._points])
        weights = np.array([one.weight for one in self._points])
        sizes, where = np.unique(rows, return_inverse=True)
        shares = np.bincount(where, weights)
        pools: list[tuple[float, float, int]] = []  # seconds, weight, sizes
        for seconds, weight in zip(np.bincount(where, weights * own) / shares, shares, strict=True):
            count = 1
            while pools and pools[-1][0] > seconds:
                before, share, sizes_before = pools.pop()
                seconds = (seconds * weight + before * share) / (weight + share)
                weight, count = weight + share, count + sizes_before
            pools.append((seconds, weight, count))
        level = np.array([seconds for seconds, _, count in pools for _ in range(count)])
        return sizes, level, float((weights * (own - level[where]) ** 2).sum())
