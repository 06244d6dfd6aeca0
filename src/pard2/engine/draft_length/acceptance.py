"""How likely a draft's tokens are to be accepted, position by position, learnt from past cycles."""

from itertools import accumulate
from operator import mul


class Acceptance:
    """One sequence's acceptance rates by position, each of the cycles that accepted all positions before it.

    Rates are averages in which old cycles weigh less and less. To what was observed at a position a guess is
    added that is worth a few observations: the rate of all sequences together, the `prior`, which learns from
    every observation made here too. So the rate of a position that is seldom tested, or was not tested for a
    while (cycles that propose nothing count), moves towards the rate of all sequences.

    Without a prior this is the acceptance of all sequences together. It forgets more slowly; its guess is the
    rate of the position before, and for the first position a high one, so that an unknown draft gets tried.
    """

    _KEEP = 0.98  # weight left of an observation after one more cycle: text changes within a paragraph
    _KEEP_OF_ALL = 0.995  # the same without a prior, after one more observation of any sequence
    _FIRST_RATE = 0.8
    _GUESS_WEIGHT = 5.0  # observations that a guess is worth

    def __init__(self, maximum: int, prior: "Acceptance | None" = None) -> None:
        if maximum < 1:
            raise ValueError("maximum must be at least 1")
        self.maximum = maximum
        self._prior = prior
        self._keep = self._KEEP_OF_ALL if prior is None else self._KEEP
        self._hits = [0.0] * maximum
        self._trials = [0.0] * maximum
        self._rates: list[float] | None = None

    def observe(self, k: int, accepted: int) -> None:
        """Learn from a cycle. Tokens behind the first rejected one were not tested, and do not count.

        k: how many tokens were proposed, perhaps 0
        accepted: how many of them were accepted
        """
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
            return self._rates_near(self._prior.rates())
        if self._rates is None:  # every sequence asks, every cycle
            self._rates = []
            guess = self._FIRST_RATE
            for hits, trials in zip(self._hits, self._trials, strict=True):
                guess = (hits + self._GUESS_WEIGHT * guess) / (trials + self._GUESS_WEIGHT)
                self._rates.append(guess)
        return self._rates

    def _rates_near(self, usual: list[float]) -> list[float]:
        """The rates, with those of all sequences as guesses.

        Where the position before falls short of its usual rate, the guess is lowered by the same share: text
        that is hard at the first positions is hard at the later ones, where it is seldom tested.
        """
        rates = []
        share = 1.0
        for hits, trials, guess in zip(self._hits, self._trials, usual, strict=True):
            rate = (hits + self._GUESS_WEIGHT * share * guess) / (trials + self._GUESS_WEIGHT)
            rates.append(rate)
            share = rate / guess if rate < guess else 1.0
        return rates

    def chances(self) -> list[float]:
        """For each position: the chance that its token is accepted, the product of the rates up to it."""
        return list(accumulate(self.rates(), mul))
