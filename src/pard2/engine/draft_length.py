"""How many tokens to propose next, chosen from what past cycles accepted and cost.

The choice never sees the tokens that it would drop, so it cannot change what is emitted (METHOD: section 6).
It knows no model: it is told what was proposed, what stood and how long it took.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_FAR = 1e6  # rows, more than any pass has


class DraftLength:
    """Picks the k in 1..maximum with the most expected tokens per second.

    Expected tokens: 1 + sum over j <= k of the product of the first j acceptance rates, a rate being conditional on
    all before it having been accepted. Rates are averages that forget; a position not asked for in a while drifts to
    the rate of the one before it, an optimistic guess that gets it tried again. Seconds: a line a + b k
    through past cycles, which forgets too.
    """

    _KEEP_RATE = 0.95  # weight left of an observation after one more cycle: text changes within a paragraph
    _KEEP_TIME = 0.99  # machines change more slowly
    _FIRST_RATE = 0.8  # of the first position, before anything is known
    _PRIOR = 2.0  # observations that a guessed rate is worth

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            raise ValueError("maximum must be at least 1")
        self.maximum = maximum
        self._hits = [0.0] * maximum
        self._trials = [0.0] * maximum
        self._warm = False
        self._weight = self._k = self._kk = self._s = self._ks = 0.0  # weighted sums of 1, k, k k, seconds, k seconds

    def choose(self) -> int:
        if self.maximum == 1:
            return 1
        if self._spread() < (self.maximum - 1) ** 2 / 16:
            # Times at one length say nothing of the slope. So begin: the maximum first, then 1.
            return 1 if 2 * self._k > (self.maximum + 1) * self._weight else self.maximum
        base, slope = self._line()
        best, best_speed = 1, 0.0
        expected = reach = 1.0
        for k, rate in enumerate(self.rates(), 1):
            reach *= rate
            expected += reach
            speed = expected / (base + slope * k)
            if speed > best_speed:
                best, best_speed = k, speed
        return best

    def observe(self, k: int, accepted: int, seconds: float) -> None:
        """Learn from a cycle that proposed k >= 1 tokens, of which `accepted` stood, and took `seconds`."""
        for j in range(self.maximum):
            self._hits[j] *= self._KEEP_RATE
            self._trials[j] *= self._KEEP_RATE
        for j in range(min(accepted + 1, k)):
            self._trials[j] += 1
            self._hits[j] += j < accepted
        if not self._warm:  # the first pass of a process pays for set-up, which is no cost of length
            self._warm = True
            return
        old = self._KEEP_TIME
        self._weight = old * self._weight + 1
        self._k = old * self._k + k
        self._kk = old * self._kk + k * k
        self._s = old * self._s + seconds
        self._ks = old * self._ks + k * seconds

    def rates(self) -> list[float]:
        """For each position: the chance that its token is accepted once all before it are."""
        rates: list[float] = []
        for hits, trials in zip(self._hits, self._trials, strict=True):
            guess = rates[-1] if rates else self._FIRST_RATE
            rates.append((hits + self._PRIOR * guess) / (trials + self._PRIOR))
        return rates

    def _spread(self) -> float:
        """Weighted sum of squared deviations of the lengths tried; 0 before any."""
        return self._kk - self._k**2 / self._weight if self._weight else 0.0

    def _line(self) -> tuple[float, float]:
        """(a, b) of seconds = a + b k; a longer proposal is never taken to be cheaper, nor a cycle to be free."""
        mean_k, mean_s = self._k / self._weight, self._s / self._weight
        slope = max(0.0, (self._ks - self._k * mean_s) / self._spread())
        slope = min(slope, mean_s / mean_k)
        return mean_s - slope * mean_k, slope


class Acceptance:
    """One sequence's acceptance rates by position, as averages that forget; a rate is conditional on all before it having been accepted.

    A rate leans on a guess, worth a few observations: the prior's rate where there is a prior, which learns from every
    observation made here too. So what is seldom seen, and what was not asked for in a while (a cycle with k = 0
    included), drifts to what the population does. Without a prior this is a population: it forgets more slowly, leans on the
    position before, and on an optimistic rate at the first, so that what is unknown gets tried.
    """

    _KEEP = 0.98  # weight left of an observation after one more cycle: text changes within a paragraph
    _KEEP_POPULATION = 0.995  # after one more observation, of whichever sequence
    _FIRST_RATE = 0.8
    _GUESS_WEIGHT = 5.0  # observations that a guess is worth

    def __init__(self, maximum: int, prior: "Acceptance | None" = None) -> None:
        if maximum < 1:
            raise ValueError("maximum must be at least 1")
        self.maximum = maximum
        self._prior = prior
        self._keep = self._KEEP_POPULATION if prior is None else self._KEEP
        self._hits = [0.0] * maximum
        self._trials = [0.0] * maximum
        self._rates: list[float] | None = None

    def observe(self, k: int, accepted: int) -> None:
        """Learn from a cycle that proposed k >= 0 tokens, of which the first `accepted` stood; behind the first that fell nothing was tested."""
        if self._prior is not None:
            self._prior.observe(k, accepted)
        self._hits = [self._keep * hits for hits in self._hits]
        self._trials = [self._keep * trials for trials in self._trials]
        for j in range(min(accepted + 1, k)):
            self._trials[j] += 1
            self._hits[j] += j < accepted
        self._rates = None

    def rates(self) -> list[float]:
        """For each position: the chance that its token is accepted once all before it are."""
        if self._prior is not None:
            return self._leaning_on(self._prior.rates())
        if self._rates is None:  # every sequence asks, every cycle
            self._rates = []
            guess = self._FIRST_RATE
            for hits, trials in zip(self._hits, self._trials, strict=True):
                guess = (hits + self._GUESS_WEIGHT * guess) / (trials + self._GUESS_WEIGHT)
                self._rates.append(guess)
        return self._rates

    def _leaning_on(self, usual: list[float]) -> list[float]:
        """Rates that lean on the usual ones; where the position before falls short of its own usual rate, by the same share less."""
        rates = []
        share = 1.0
        for hits, trials, guess in zip(self._hits, self._trials, usual, strict=True):
            rate = (hits + self._GUESS_WEIGHT * share * guess) / (trials + self._GUESS_WEIGHT)
            rates.append(rate)
            share = min(1.0, rate / guess)  # text that is hard at once is hard further on, where it is seldom seen
        return rates

    def chances(self) -> list[float]:
        """For each position: the chance that its token is emitted, the product of the rates up to it; never rising."""
        return list(accumulate(self.rates(), mul))


@dataclass
class _Bucket:
    """Passes of about the same number of rows."""

    rows: float
    seconds: float
    count: int
    last: int  # the number of the observation that last fell here


class PassTimes:
    """Seconds of a model's forward pass by its number of rows, learnt from passes measured.

    A decayed mean for each number of rows, or for each eighth of an octave above 16; straight lines between those seen
    of late; never less for more rows. It does not know the context's length, which the means follow as it grows.

    A pass may be held up tenfold by the world but hardly be hastened, so upward errors are clipped before they enter the mean,
    and a time under half of the mean shows the mean itself to be spoilt and replaces it.
    """

    _EXACT = 16  # up to here each number of rows has a mean of its own
    _GAIN = 0.05  # of the newest time, once a mean is settled
    _CLIP = 0.5  # a time counts as at most this share above what was expected
    _NOISE = 0.1  # relative standard deviation of one time
    _NEAR = 4  # times the most rows timed: as far as the slope is trusted
    _FORGET = 1000  # observations after which an unvisited bucket is left out: machines and contexts change

    def __init__(self) -> None:
        self._warm = False
        self._observations = 0
        self._buckets: dict[int, _Bucket] = {}
        self._knots: tuple[Array, Array] | None = None

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a pass of `rows` >= 1 rows. The first one pays for set-up, which is no cost of rows, and is ignored."""
        self.observe_run([rows], seconds)

    def observe_run(self, rows: Sequence[int], seconds: float) -> None:
        """Learn from passes of these rows that took `seconds` together: shared among them as expected, and one lesson per size."""
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
        """(rows, seconds) of the knots of the curve: the buckets seen of late, made monotone, and what is guessed at either end."""
        if not self._buckets:
            raise ValueError("no pass has been timed yet")
        farthest = max(self._buckets)  # is kept: it bounds what has to be guessed
        self._buckets = {k: b for k, b in sorted(self._buckets.items()) if k == farthest or self._observations - b.last < self._FORGET}
        pools: list[tuple[float, float, list[float]]] = []  # seconds, weight, rows: pooled until none is below the one before
        for bucket in self._buckets.values():
            seconds, weight, members = bucket.seconds, min(bucket.count, 1 / self._GAIN), [bucket.rows]
            while pools and pools[-1][0] > seconds:
                other, other_weight, others = pools.pop()
                other = min(other, (1 + self._CLIP) * seconds)  # far above a pass of more rows: it was held up when it was new
                seconds = (seconds * weight + other * other_weight) / (weight + other_weight)
                weight, members = weight + other_weight, others + members
            pools.append((seconds, weight, members))
        xs = [rows for _, _, members in pools for rows in members]
        ys = [seconds for seconds, _, members in pools for _ in members]
        slope = self._slope(xs, ys)
        # Fewer rows may well be much cheaper, but a pass reads its weights whatever its rows. Far above all that was timed,
        # where a flat stretch must have ended, a row is taken to cost its full share.
        left = max(ys[0] - slope * xs[0], ys[0] / 2)
        near = ys[-1] + slope * (self._NEAR - 1) * xs[-1]
        far = near + max(slope, ys[-1] / xs[-1]) * _FAR
        return np.array([0.0, *xs, self._NEAR * xs[-1], self._NEAR * xs[-1] + _FAR]), np.array([left, *ys, near, far])

    def _slope(self, rows: list[float], seconds: list[float]) -> float:
        """Seconds a row overall: least squares, less what noise could feign. A size thought too cheap gets tried and is known then."""
        weights = [min(bucket.count, 1 / self._GAIN) for bucket in self._buckets.values()]
        total = sum(weights)
        center = sum(map(mul, weights, rows)) / total
        mean = sum(map(mul, weights, seconds)) / total
        moments = [weight * (x - center) for weight, x in zip(weights, rows, strict=True)]
        square = sum(map(mul, moments, rows))
        if square <= 0:  # one size alone
            return 0.0
        return max(0.0, sum(map(mul, moments, seconds)) / square - 2 * self._NOISE * mean / square**0.5)


class DraftLengths:
    """Chooses how many tokens each sequence of a batch may propose, for the most expected tokens per second of the whole batch.

    One lives as long as its engine: what it learns from one request serves the next. sequential: the draft
    runs once for each further token (`vsd`), where a parallel one runs once in all.

    Tokens: for each sequence 1 + the sum of its chances up to K (METHOD: section 4, "Why a prefix product"). Seconds: the draft's
    passes and the target's, as `PassTimes` expects them; none for the draft where nobody proposes.
    It begins with a few cycles that give times. Later the best choice known hides what the others have become, so now and
    then it makes another: where some pay, none at all (every fourth time) or one token more, or a third less each; where none
    pays, those that would if text were easy. A trial's expected loss must be covered by a credit that grows with a
    small share of the time spent. Tokens that easy text turns out to bring are paid back, so such a trial is repeated
    at once, until the rates have caught up.
    """

    _TRIALS = 0.007  # share of the time that trials may lose
    _HORIZON = 32  # cycles over which catching up with a long backlog is to pay
    _SMALL = 2  # tokens a sequence that the start proposes for the second point of the times

    def __init__(self, maximum: int, sequential: bool = False) -> None:
        self.maximum = maximum
        self.sequential = sequential
        self.population = Acceptance(maximum)
        self.draft_times = PassTimes()
        self.target_times = PassTimes()
        # Tokens a batch proposes at the start. The first pass is not timed and a second time guards against a slow one.
        self._start = [maximum, maximum, maximum, self._SMALL, self._SMALL, 0, 0]
        self._credit = 0.0  # seconds
        self._expected: float | None = None  # tokens of a trial of proposals under way
        self._turn = 0  # trials made
        self._speed = 0.0  # tokens per second of the choice thought best

    def acceptance(self) -> Acceptance:
        """The acceptance of a new sequence, which leans on that of all and feeds it; the caller keeps it and has it observe every cycle."""
        return Acceptance(self.maximum, self.population)

    def choose(self, acceptances: Sequence[Acceptance], limits: Sequence[int], backlog: Sequence[int]) -> list[int]:
        """Tokens to propose for each of B sequences: 0..limits[i], where limits[i] <= maximum.

        backlog: for each, real tokens that the draft has yet to read, at least 1; it reads them when it next proposes.
        """
        if not any(limits):
            return [0] * len(limits)
        if self._start:
            return self._first(limits)
        # A backlog beyond a cycle's is read once, for the good of many cycles.
        usual = self.maximum + 1
        spread = [min(rows, usual) + max(0, rows - usual) / self._HORIZON for rows in backlog]
        chances = [acceptance.chances() for acceptance in acceptances]
        ks, self._speed = self._best(chances, limits, spread)
        trial = self._trial(ks, limits, backlog)
        expected = sum(sum(chance[:k]) for chance, k in zip(chances, trial, strict=True))
        if self._seconds(trial, backlog) - (len(ks) + expected) / self._speed > self._credit:
            return ks
        self._credit = 0.0  # what the trial leaves lapses, so that none is saved up for many
        self._expected = None if any(ks) else expected
        self._turn += 1
        return trial

    def observe(
        self,
        ks: Sequence[int],
        accepted: Sequence[int],
        draft_rows: Sequence[int],
        draft_seconds: float,
        verify_rows: int,
        verify_seconds: float,
    ) -> None:
        """Learn from a cycle: of ks[i] proposals accepted[i] stood.

        draft_rows: of each of the draft's passes; draft_seconds: of all of them. Acceptance rates are learnt by each
        sequence's own `Acceptance`.
        """
        if draft_rows:
            self.draft_times.observe_run(draft_rows, draft_seconds)
        self.target_times.observe(verify_rows, verify_seconds)
        if self._start:
            if any(ks) == (self._start[0] > 0):
                del self._start[0]
            return
        self._credit += self._TRIALS * (draft_seconds + verify_seconds)
        if self._expected is not None:
            self._credit += (sum(accepted) - self._expected) / self._speed
            self._expected = None

    def _first(self, limits: Sequence[int]) -> list[int]:
        """A choice for the start, whose rows are few whatever the batch: nothing is known yet of what they cost."""
        share = -(-self._start[0] // len(limits))
        return [min(share, limit) for limit in limits]

    def _best(self, chances: Sequence[Sequence[float]], limits: Sequence[int], backlog: Sequence[float]) -> tuple[list[int], float]:
        """The K of each sequence with the most tokens per second of all, and these.

        All tokens in order of chance: each may be the last one proposed. That meets the best of all vectors K where a
        token costs the same wherever it is put, and comes close where backlogs differ. A sequential draft pays for depth
        before all, so there it is done for each depth as the deepest.
        """
        batch = len(limits)
        gains = np.array(chances)  # [B, maximum]
        gains[np.arange(self.maximum) >= np.array(limits)[:, None]] = -1.0
        # Of equal chances the one with less to read comes first; the sort is stable, so no token comes before the one it follows.
        order = np.lexsort((np.repeat(backlog, self.maximum), -gains.ravel()))[: sum(limits)]  # [N]
        sequences, depths = np.divmod(order, self.maximum)
        deepest = np.arange(self.maximum)[0 if self.sequential else -1 :, None]  # [D, 1]
        taken = depths <= deepest  # [D, N]
        opens = depths == 0
        reading = np.where(opens, np.array(backlog)[sequences], 0.0)
        tokens = batch + np.cumsum(taken * gains.ravel()[order], axis=1)
        seconds = self.target_times.curve(batch + np.cumsum(taken, axis=1))
        if self.sequential:
            # The n-th sequence that goes on to a depth makes that depth's pass one of n rows.
            nth = np.cumsum(depths[:, None] == np.arange(self.maximum), axis=0)[np.arange(len(order)), depths]
            costs = np.concatenate([[0.0], self.draft_times.curve(np.arange(1.0, batch + 1))])
            seconds += self.draft_times.curve(np.cumsum(taken * reading, axis=1))
            seconds += np.cumsum(taken * np.where(opens, 0.0, costs[nth] - costs[nth - 1]), axis=1)
        else:
            seconds += self.draft_times.curve(np.cumsum(np.where(opens, reading, 1.0)))
        speeds = tokens / seconds
        depth, last = np.unravel_index(np.argmax(speeds), speeds.shape)
        plain = batch / self.target_times.estimate(batch)
        if speeds[depth, last] <= plain:
            return [0] * batch, plain
        return np.bincount(sequences[: last + 1][taken[depth, : last + 1]], minlength=batch).tolist(), float(speeds[depth, last])

    def _trial(self, ks: list[int], limits: Sequence[int], backlog: Sequence[int]) -> list[int]:
        """Another choice than ks, the best one known, for the sake of what it shows."""
        turn = self._turn % 4
        if any(ks):
            if turn == 0:
                return [0] * len(ks)
            # A line between two row counts known may hide a better one.
            return [min(k + 1 if turn % 2 else 2 * k // 3 or k, limit) if k else 0 for k, limit in zip(ks, limits, strict=True)]
        if turn % 2 == 0:  # cheap, and times between few and many rows get known
            limits = [min(limit, self._SMALL) for limit in limits]
        trial, _ = self._best([Acceptance(self.maximum).chances()] * len(limits), limits, backlog)
        if not any(trial):  # not even easy text would pay: learn whether the times still hold
            trial[min((i for i, limit in enumerate(limits) if limit), key=lambda i: backlog[i])] = 1
        return trial

    def _seconds(self, ks: Sequence[int], backlog: Sequence[int]) -> float:
        """What a cycle with these ks is expected to take."""
        seconds = self.target_times.estimate(len(ks) + sum(ks))
        read = sum(rows for k, rows in zip(ks, backlog, strict=True) if k)
        if not any(ks):
            return seconds
        if not self.sequential:
            return seconds + self.draft_times.estimate(read + sum(k - 1 for k in ks if k))
        further = [sum(k > depth for k in ks) for depth in range(1, max(ks))]
        return seconds + self.draft_times.estimate(read) + sum(self.draft_times.estimate(rows) for rows in further)
