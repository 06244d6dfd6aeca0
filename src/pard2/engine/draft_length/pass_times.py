"""How long a model's passes take, by their rows, learnt from passes measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_FAR = 1e6  # rows, more than any pass has


@dataclass
class _Bucket:
    """Passes of about the same number of rows."""

    rows: float
    seconds: float
    count: int
    last: int  # the number of the observation that last fell here


class PassTimes:
    """Seconds of a model's forward pass by its number of rows, learnt from passes measured.

    It keeps a mean, in which old passes weigh less, for each number of rows up to 16, and for each eighth of
    an octave above. Between the means seen of late run straight lines, and more rows never take less time.
    The length of the context is not known here; the means follow it as it grows.

    Other programs may hold up a pass to ten times its length, but nothing makes it much faster than usual. So
    times far above the mean are clipped before they enter it, and a time under half of the mean replaces it:
    then the mean itself came from a pass that was held up.
    """

    _EXACT = 16  # up to here each number of rows has a mean of its own
    _GAIN = 0.05  # of the newest time, once a mean is settled
    _CLIP = 0.5  # a time counts as at most this share above what was expected
    _NOISE = 0.1  # relative standard deviation of one time
    _NEAR = 4  # times the most rows timed: as far as the slope is trusted
    _SETTLED = 64  # observations; from here on one more changes little, so the curve is drawn anew only
    _REFIT = 4  # every so many
    _FORGET = 1000  # observations after which an unvisited bucket is left out: machines and contexts change

    def __init__(self) -> None:
        self._warm = False
        self._observations = 0
        self._buckets: dict[int, _Bucket] = {}
        self._knots: tuple[Array, Array] | None = None

    @property
    def known(self) -> bool:
        """Whether a pass has been timed, so that there is something to estimate from."""
        return bool(self._buckets)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a pass of `rows` >= 1 rows. The first pass, which includes set-up, is ignored."""
        self.observe_run([rows], seconds)

    def observe_run(self, rows: Sequence[int], seconds: float) -> None:
        """Learn from passes of these rows that took `seconds` together, shared among them as was expected.

        Each size among them enters its mean once.
        """
        if not self._warm:
            self._warm = True
            return
        self._observations += 1
        sizes = sorted(set(rows))  # or one hold-up would count once for every pass of the run
        if not self._buckets:
            lessons = [(size, seconds / len(rows), seconds / len(rows)) for size in sizes]
        else:
            expected = [self.estimate(size) for size in sizes]
            total = sum(seconds_each * rows.count(size) for size, seconds_each in zip(sizes, expected, strict=True))
            lessons = [(size, each, each * seconds / total) for size, each in zip(sizes, expected, strict=True)]
        for size, each, lesson in lessons:
            self._learn(size, each, lesson)
        if self._observations < self._SETTLED or self._observations % self._REFIT == 0:
            self._knots = None

    def estimate(self, rows: float) -> float:
        """Seconds of a pass of `rows` rows; needs something observed."""
        return float(self.curve([rows])[0])

    def curve(self, rows: ArrayLike) -> Array:
        """Seconds of passes of so many rows each, of the shape of `rows`."""
        if self._knots is None:
            self._knots = self._fit()
        return np.interp(np.asarray(rows, dtype=np.float64), *self._knots)

    def _learn(self, rows: int, expected: float, seconds: float) -> None:
        width = 1 if rows <= self._EXACT else 1 << rows.bit_length() - 4
        key = rows // width * width
        if key not in self._buckets:
            self._buckets[key] = _Bucket(rows, expected, 0, 0)
        bucket = self._buckets[key]
        bucket.last = self._observations
        bucket.count += 1
        gain = max(1 / bucket.count, self._GAIN)
        bucket.rows += gain * (rows - bucket.rows)
        if seconds < bucket.seconds / 2:
            bucket.seconds, bucket.count = seconds, 1
        else:
            bucket.seconds += gain * (min(seconds, (1 + self._CLIP) * bucket.seconds) - bucket.seconds)

    def _fit(self) -> tuple[Array, Array]:
        """(rows, seconds) of the knots of the curve.

        They are the means seen of late, made monotone, and what is guessed at either end.
        """
        if not self._buckets:
            raise ValueError("no pass has been timed yet")
        farthest = max(self._buckets)  # is kept: it bounds what has to be guessed
        self._buckets = {k: b for k, b in sorted(self._buckets.items()) if k == farthest or self._observations - b.last < self._FORGET}
        # (seconds, weight, rows), pooled until none is below the one before.
        pools: list[tuple[float, float, list[float]]] = []
        for bucket in self._buckets.values():
            seconds, weight, members = bucket.seconds, min(bucket.count, 1 / self._GAIN), [bucket.rows]
            while pools and pools[-1][0] > seconds:
                other, other_weight, others = pools.pop()
                # Far above a pass of more rows: it was held up when it was new.
                other = min(other, (1 + self._CLIP) * seconds)
                seconds = (seconds * weight + other * other_weight) / (weight + other_weight)
                weight, members = weight + other_weight, others + members
            pools.append((seconds, weight, members))
        xs = [rows for _, _, members in pools for rows in members]
        ys = [seconds for seconds, _, members in pools for _ in members]
        slope = self._slope(xs, ys)
        # Fewer rows may well be much cheaper, but a pass reads its weights whatever its rows. Far above all
        # that was timed a row is taken to cost its full share: rows are free in a limited range only.
        left = max(ys[0] - slope * xs[0], ys[0] / 2)
        near = ys[-1] + slope * (self._NEAR - 1) * xs[-1]
        far = near + max(slope, ys[-1] / xs[-1]) * _FAR
        return np.array([0.0, *xs, self._NEAR * xs[-1], self._NEAR * xs[-1] + _FAR]), np.array([left, *ys, near, far])

    def _slope(self, rows: list[float], seconds: list[float]) -> float:
        """Seconds a row overall: the slope by least squares, less what noise alone could make of it.

        Too small a slope is the safer error: a size that is thought too cheap gets tried, and is known then.
        """
        weights = [min(bucket.count, 1 / self._GAIN) for bucket in self._buckets.values()]
        total = sum(weights)
        center = sum(map(mul, weights, rows)) / total
        mean = sum(map(mul, weights, seconds)) / total
        moments = [weight * (x - center) for weight, x in zip(weights, rows, strict=True)]
        square = sum(map(mul, moments, rows))
        if square <= 0:  # one size alone
            return 0.0
        return max(0.0, sum(map(mul, moments, seconds)) / square - 2 * self._NOISE * mean / square**0.5)
