"""How many tokens to propose next, chosen from what past cycles accepted and cost.

The choice never sees the tokens that it would drop, so it cannot change what is emitted (METHOD: section 6).
It knows no model: it is told what was proposed, what was accepted and how long it took.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pard2.engine.draft_length.acceptance import Acceptance
from pard2.engine.draft_length.pass_times import PassTimes
from pard2.engine.draft_length.plain import expected_seconds, expected_tokens
from pard2.engine.draft_length.vectorised import Choice, best_lengths


@dataclass(frozen=True, kw_only=True)
class MeasuredCycle:
    """What a cycle of a batch did, and how long its passes took.

    proposed: tokens of each sequence that `choose` asked for
    accepted: how many of them were accepted, of each sequence
    draft_rows: rows of each of the draft's passes, none where nothing was proposed
    draft_seconds: of all of the draft's passes together
    verify_rows: rows of the target's pass
    verify_seconds: of the target's pass
    """

    proposed: Sequence[int]
    accepted: Sequence[int]
    draft_rows: Sequence[int]
    draft_seconds: float
    verify_rows: int
    verify_seconds: float


class AdaptiveDraftLength:
    """Chooses how many tokens each sequence proposes, for the most expected tokens per second of the batch.

    The rule is that of `plain.best_lengths`. What goes into it is learnt: chances by `Acceptance`, seconds by
    `PassTimes`. One lives as long as its engine; what it learns from one request serves the next.

    It begins with a few cycles of many, few and no tokens, for their times. Later only what is chosen is
    measured, so now and then another choice is tried: where proposals pay, none at all (every fourth trial),
    one token more, or a third less; where none pay, as many as would pay if text were easy.

    A trial must be covered by a credit in seconds, which grows with a small share of the time that passes.
    Tokens that a trial of proposals brings beyond those expected are paid back into the credit. So on text
    that has become easy the trial is repeated at once, until the acceptance rates have followed.
    """

    _TRIALS = 0.007  # share of the time that trials may lose
    _HORIZON = 64  # cycles over which reading a long backlog is to pay
    _REST = 3  # cycles without a comparison, after one in which proposing nothing was clearly the best
    _SMALL = 2  # tokens a sequence that the start proposes for the second point of the times

    def __init__(self, maximum: int, sequential: bool = False) -> None:
        """maximum: tokens that a sequence proposes at most
        sequential: the draft runs once for each further token (`vsd`); a parallel one runs once for all
        """
        self.maximum = maximum
        self.sequential = sequential
        self.population = Acceptance(maximum)
        self.draft_times = PassTimes()
        self.target_times = PassTimes()
        # Tokens of a batch at the start. The first pass is not timed; a second time guards against hold-ups.
        self._start = [maximum, maximum, maximum, self._SMALL, self._SMALL, 0, 0]
        self._rest = 0  # cycles that still propose nothing without a comparison
        self._credit = 0.0  # seconds
        self._expected: float | None = None  # tokens of a trial of proposals under way
        self._turn = 0  # trials made
        self._speed = 0.0  # tokens per second of the choice thought best

    def acceptance(self) -> Acceptance:
        """The acceptance of a new sequence; the caller keeps it, and has it observe every cycle."""
        return Acceptance(self.maximum, self.population)

    def choose(self, acceptances: Sequence[Acceptance], limits: Sequence[int], backlog: Sequence[int]) -> list[int]:
        """Tokens to propose for each of B sequences: 0..limits[i].

        acceptances: of the sequences, as `acceptance` made them
        limits: at most `maximum` each
        backlog: tokens of each sequence that the draft has not read, at least 1; it reads them when it
            proposes
        """
        if not any(limits):
            return [0] * len(limits)
        if self._start:
            return self._first(limits)
        if self._rest > 0:
            self._rest -= 1
            return [0] * len(limits)
        chances = [acceptance.chances() for acceptance in acceptances]
        # A backlog longer than what a cycle emits is read once, for the good of many cycles.
        usual = [1 + sum(chance) for chance in chances]
        spread = [min(unread, new) + max(0, unread - new) / self._HORIZON for unread, new in zip(backlog, usual, strict=True)]
        best = self._best(chances, limits, spread)
        self._speed = best.speed
        trial = self._trial(best.lengths, limits, backlog)
        expected = expected_tokens(trial, chances)
        seconds = expected_seconds(trial, spread, self.draft_times.estimate, self.target_times.estimate, self.sequential)
        if seconds - expected / self._speed > self._credit:
            # Without proposals little is learnt that could change a clear choice, and choosing costs most.
            self._rest = self._REST if best.clearly_none else 0
            return best.lengths
        self._credit = 0.0  # what the trial leaves lapses, so that none is saved up for many
        self._expected = None if any(best.lengths) else expected - len(trial)
        self._turn += 1
        return trial

    def observe(self, cycle: MeasuredCycle) -> None:
        """Learn from a cycle. Acceptance rates are learnt by each sequence's own `Acceptance`."""
        if cycle.draft_rows:
            self.draft_times.observe_run(cycle.draft_rows, cycle.draft_seconds)
        self.target_times.observe(cycle.verify_rows, cycle.verify_seconds)
        if self._start:
            if any(cycle.proposed) == (self._start[0] > 0):
                del self._start[0]
            return
        self._credit += self._TRIALS * (cycle.draft_seconds + cycle.verify_seconds)
        if self._expected is not None:
            self._credit += (sum(cycle.accepted) - self._expected) / self._speed
            self._expected = None

    def _first(self, limits: Sequence[int]) -> list[int]:
        """A choice for the start, of few tokens whatever the batch: what they cost is not known yet."""
        share = -(-self._start[0] // len(limits))
        return [min(share, limit) for limit in limits]

    def _best(self, chances: Sequence[Sequence[float]], limits: Sequence[int], backlog: Sequence[float]) -> Choice:
        return best_lengths(chances, limits, backlog, self.draft_times, self.target_times, self.sequential)

    def _trial(self, best: list[int], limits: Sequence[int], backlog: Sequence[int]) -> list[int]:
        """Lengths other than the best ones known, for the sake of what they show."""
        turn = self._turn % 4
        if any(best):
            if turn == 0:
                return [0] * len(best)
            # A line between two row counts known may hide a better one.
            return [min(k + 1 if turn % 2 else 2 * k // 3 or k, limit) if k else 0 for k, limit in zip(best, limits, strict=True)]
        if turn % 2 == 0:  # cheap, and times between few and many rows get known
            limits = [min(limit, self._SMALL) for limit in limits]
        trial = self._best([Acceptance(self.maximum).chances()] * len(limits), limits, backlog).lengths
        if not any(trial):  # not even easy text would pay: learn whether the times still hold
            trial[min((i for i, limit in enumerate(limits) if limit), key=lambda i: backlog[i])] = 1
        return trial
