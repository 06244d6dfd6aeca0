"""How likely a draft's tokens are to stand, position by position, learnt from what became of past ones."""

from itertools import accumulate
from operator import mul


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
