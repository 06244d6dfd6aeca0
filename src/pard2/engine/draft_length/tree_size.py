"""How many nodes of each sequence's tree are verified in a cycle.

It is asked after the draft's pass, when the probability of every node is known, and before the target's.
Any tree is lossless (docs/method.md, section 6), so the choice decides about speed alone.
"""

from collections.abc import Sequence
from itertools import chain
from math import ceil

import numpy as np

from pard2.engine.draft_length.pass_times import PassTimes


class TreeSize:
    """Chooses how many nodes of each sequence are verified, for the most expected tokens per second of all.

    Expected tokens: one for each sequence, and for each node the chance that it is accepted. That is the
    draft's own probability of the node's path, times a factor: tokens accepted in past cycles over tokens
    that the draft's probabilities promised. Expected seconds: the draft's pass and the target's.

    One lives as long as its engine. It begins with cycles of all, few and no nodes, from which `target_times`
    learns what a node costs. Later every 64th cycle verifies twice as many nodes as seem best, or half as
    many, in turn: the times of other sizes are known only by being tried.
    """

    _KEEP = 0.98  # weight left of a cycle's tokens after one more cycle: text changes within a paragraph
    _PRIOR = 5.0  # expected tokens, all accepted, counted beside those observed: the factor is 1 at first
    _BOUNDS = (0.25, 2.0)  # of the factor
    _TRIAL = 64  # cycles from one trial to the next

    def __init__(self) -> None:
        self._accepted = 0.0
        self._expected = 0.0
        # Shares of the nodes at the start. A second time guards against a slow one.
        self._start = [1.0, 0.25, 0.25, 0.0, 0.0]
        self._cycle = 0

    @property
    def factor(self) -> float:
        """Accepted tokens for each token that the draft's probabilities promise."""
        low, high = self._BOUNDS
        return min(high, max(low, (self._accepted + self._PRIOR) / (self._expected + self._PRIOR)))

    def choose(self, probabilities: Sequence[Sequence[float]], target_times: PassTimes, draft_seconds: float) -> list[int]:
        """The number of nodes to verify of each of B sequences: the first so many of its list.

        probabilities: of the nodes of each sequence, never rising; the draft's, of the whole path to a node
        target_times: what the target's passes take, by their rows; B more rows than nodes
        draft_seconds: what the draft's pass of a cycle takes
        """
        counts = [len(nodes) for nodes in probabilities]
        if not any(counts) or not target_times.known:
            return counts
        if self._start:
            share = self._start.pop(0)
            return [ceil(share * count) for count in counts]
        batch = len(counts)
        chances = np.array(probabilities[0] if batch == 1 else [*chain.from_iterable(probabilities)])
        # Most probable first. The sort is stable: a sequence's nodes keep their order.
        order = (-chances).argsort(kind="stable")
        tokens = np.full(len(order) + 1, float(batch))  # by the number of nodes
        tokens[1:] += np.minimum(self.factor * chances[order], 1.0).cumsum()
        seconds = target_times.curve(np.arange(batch, batch + len(tokens))) + draft_seconds
        total = self._or_trial(int((tokens / seconds).argmax()), batch, len(order))
        if batch == 1:
            return [total]
        sequences = np.repeat(np.arange(batch), counts)
        return np.bincount(sequences[order[:total]], minlength=batch).tolist()

    def observe(self, expected: float, accepted: int) -> None:
        """Learn from a cycle of the whole batch.

        expected: the sum of the probabilities of the verified nodes, as `choose` was given them
        accepted: how many of these nodes were accepted
        """
        self._expected = self._KEEP * self._expected + expected
        self._accepted = self._KEEP * self._accepted + accepted

    def _or_trial(self, total: int, batch: int, most: int) -> int:
        """The number of nodes that seems best; in every 64th cycle another one."""
        self._cycle += 1
        trial, rest = divmod(self._cycle, self._TRIAL)
        if rest:
            return total
        return min(most, max(batch, 2 * total)) if trial % 2 else total // 2
