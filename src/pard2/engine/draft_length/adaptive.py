"""How many tokens to propose next, chosen from what past cycles accepted and cost.

The choice never sees the tokens that it would drop, so it cannot change what is emitted (METHOD: section 6).
It knows no model: it is told what was proposed, what stood and how long it took.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from pard2.engine.draft_length.acceptance import Acceptance
from pard2.engine.draft_length.pass_times import PassTimes

# Times plain decoding's speed that proposals must promise: they cost a little outside the models as well, and times are noisy.
_WORTHWHILE = 1.015
_CLEAR = 1.1  # times the speed of the best proposals, at which proposing nothing needs no second look at once


class DraftLengths:
    """Chooses how many tokens each sequence of a batch may propose, for the most expected tokens per second of the whole batch.

    One lives as long as its engine: what it learns from one request serves the next. sequential: the draft
    runs once for each further token (`vsd`), where a parallel one runs once in all.

    Tokens: for each sequence 1 + the sum of its chances up to K (docs/method.md: section 4, "Why a product"). Seconds: the draft's
    passes and the target's, as `PassTimes` expects them; none for the draft where nobody proposes.
    It begins with a few cycles that give times. Later the best choice known hides what the others have become, so now and
    then it makes another: where some pay, none at all (every fourth time) or one token more, or a third less each; where none
    pays, those that would if text were easy. A trial's expected loss must be covered by a credit that grows with a
    small share of the time spent. Tokens that easy text turns out to bring are paid back, so such a trial is repeated
    at once, until the rates have caught up.
    """

    _TRIALS = 0.007  # share of the time that trials may lose
    _HORIZON = 32  # cycles over which catching up with a long backlog is to pay
    _REST = 3  # cycles
    _SMALL = 2  # tokens a sequence that the start proposes for the second point of the times

    def __init__(self, maximum: int, sequential: bool = False) -> None:
        self.maximum = maximum
        self.sequential = sequential
        self.population = Acceptance(maximum)
        self.draft_times = PassTimes()
        self.target_times = PassTimes()
        # Tokens a batch proposes at the start. The first pass is not timed and a second time guards against a slow one.
        self._start = [maximum, maximum, maximum, self._SMALL, self._SMALL, 0, 0]
        self._clear = False  # whether proposing nothing was by far the best in the latest comparison
        self._rest = 0  # cycles for which it goes on unquestioned
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
        if self._rest > 0:
            self._rest -= 1
            return [0] * len(limits)
        # A backlog beyond a cycle's is read once, for the good of many cycles.
        usual = self.maximum + 1
        spread = [min(rows, usual) + max(0, rows - usual) / self._HORIZON for rows in backlog]
        chances = [acceptance.chances() for acceptance in acceptances]
        self._clear = False
        ks, self._speed = self._best(chances, limits, spread)
        clear = self._clear
        trial = self._trial(ks, limits, backlog)
        expected = sum(sum(chance[:k]) for chance, k in zip(chances, trial, strict=True))
        if self._seconds(trial, backlog) - (len(ks) + expected) / self._speed > self._credit:
            # A cycle without proposals shows little that could turn a clear choice, and feels the cost of choosing most.
            self._rest = self._REST if clear else 0
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
        if len(limits) == 1 and not self.sequential:
            return self._best_of_one(chances[0][: limits[0]], backlog[0])
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
        self._clear = plain > _CLEAR * speeds[depth, last]
        if speeds[depth, last] <= _WORTHWHILE * plain:
            return [0] * batch, plain
        return np.bincount(sequences[: last + 1][taken[depth, : last + 1]], minlength=batch).tolist(), float(speeds[depth, last])

    def _best_of_one(self, chances: Sequence[float], backlog: float) -> tuple[list[int], float]:
        """`_best` of a single sequence with a parallel draft, whose cycles are short enough to feel every operation."""
        ks = np.arange(len(chances) + 1)
        seconds = self.target_times.curve(ks + 1)
        seconds[1:] += self.draft_times.curve(ks[:-1] + backlog)
        speeds = np.fromiter(accumulate(chances, initial=1.0), np.float64) / seconds
        best = int(speeds.argmax())
        if speeds[best] <= _WORTHWHILE * speeds[0]:
            best = 0
        self._clear = best == 0 and bool(speeds[0] > _CLEAR * speeds[1:].max())
        return [best], float(speeds[best])

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
