"""How many tokens to propose next, chosen from what past cycles accepted and cost.

The choice never sees the tokens that it would drop, so it cannot change what is emitted (METHOD: section 6).
"""


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
