"""The rule of `plain` in array operations: the same choice without trying all, in tens of microseconds."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from pard2.engine.draft_length.pass_times import Array, PassTimes
from pard2.engine.draft_length.plain import WORTHWHILE

_CLEARLY = 1.1  # times the speed of the best proposals: so fast plain decoding is clearly the best


class Choice(NamedTuple):
    """What is best, and how good it is.

    lengths: tokens that each sequence proposes
    speed: expected tokens per second of the whole batch
    clearly_none: proposing nothing is by far the fastest
    """

    lengths: list[int]
    speed: float
    clearly_none: bool


def best_lengths(
    chances: Sequence[Sequence[float]],
    limits: Sequence[int],
    backlog: Sequence[float],
    draft_times: PassTimes,
    target_times: PassTimes,
    sequential: bool,
) -> Choice:
    """As `plain.best_lengths`, with what is known about the best.

    All tokens of all sequences are put in order of chance, and each in turn is taken for the last one
    proposed. That finds the best of all choices where a token costs the same wherever it is put, and one
    close to it where backlogs differ. A sequential draft's time depends on the greatest length above all, so
    there it is done once for each greatest length.
    """
    if len(limits) == 1 and not sequential:
        return _best_of_one(chances[0][: limits[0]], backlog[0], draft_times, target_times)
    batch = len(limits)
    maximum = len(chances[0])
    gains = np.array(chances)  # [batch, maximum]
    gains[np.arange(maximum) >= np.array(limits)[:, None]] = -1.0
    # Of equal chances the one with less to read comes first. The sort keeps the order of a sequence's tokens.
    order = np.lexsort((np.repeat(backlog, maximum), -gains.ravel()))[: sum(limits)]  # [N]
    sequences, depths = np.divmod(order, maximum)
    greatest = np.arange(maximum)[0 if sequential else -1 :, None]  # [D, 1]
    taken = depths <= greatest  # [D, N]
    tokens = batch + np.cumsum(taken * gains.ravel()[order], axis=1)
    seconds = target_times.curve(batch + np.cumsum(taken, axis=1))
    reading = np.where(depths == 0, np.array(backlog)[sequences], 0.0)
    if sequential:
        seconds += draft_times.curve(np.cumsum(taken * reading, axis=1))
        seconds += np.cumsum(taken * _further_passes(depths, batch, maximum, draft_times), axis=1)
    else:
        seconds += draft_times.curve(np.cumsum(np.where(depths == 0, reading, 1.0)))
    speeds = tokens / seconds
    depth, last = np.unravel_index(np.argmax(speeds), speeds.shape)
    speed = float(speeds[depth, last])
    plain = batch / target_times.estimate(batch)
    if speed <= WORTHWHILE * plain:
        return Choice([0] * batch, plain, bool(plain > _CLEARLY * speed))
    return Choice(np.bincount(sequences[: last + 1][taken[depth, : last + 1]], minlength=batch).tolist(), speed, False)


def _further_passes(depths: Array, batch: int, maximum: int, draft_times: PassTimes) -> Array:
    """Seconds that each token, in order, adds to a sequential draft's passes after the first. [N]

    The n-th sequence that goes on to a depth makes that depth's pass one of n rows.
    """
    nth = np.cumsum(depths[:, None] == np.arange(maximum), axis=0)[np.arange(len(depths)), depths]
    costs = np.concatenate([[0.0], draft_times.curve(np.arange(1.0, batch + 1))])
    return np.where(depths == 0, 0.0, costs[nth] - costs[nth - 1])


def _best_of_one(chances: Sequence[float], backlog: float, draft_times: PassTimes, target_times: PassTimes) -> Choice:
    """For a single sequence with a parallel draft, whose cycles are so short that every operation is felt."""
    ks = np.arange(len(chances) + 1)
    seconds = target_times.curve(ks + 1)
    seconds[1:] += draft_times.curve(ks[:-1] + backlog)
    speeds = np.fromiter(accumulate(chances, initial=1.0), np.float64) / seconds
    best = int(speeds.argmax())
    if speeds[best] <= WORTHWHILE * speeds[0]:
        best = 0
    return Choice([best], float(speeds[best]), best == 0 and bool(speeds[0] > _CLEARLY * speeds[1:].max()))
