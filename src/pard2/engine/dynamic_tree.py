"""The tree of a draft that guesses token by token, grown by the probability of its paths (EAGLE-2; METHOD:
section 8).

At each depth the draft says what may follow the nodes of the frontier. Of all these children the k with the
most probable paths are the next frontier; the tree that is proposed is the best nodes of all that were met.
It knows no tensors.
"""

import math
from collections.abc import Sequence

import numpy as np

from pard2.engine.best_first import Candidates, Tree


class DynamicTree:
    """A tree in the making.

    Whoever grows it feeds the draft the root and, behind it, the expanded nodes: those that are or were in
    the frontier. Their rows are numbered in this order, the root's is 0.

    width: k, nodes of a frontier.
    token_ids: of the expanded nodes.
    parents: the row of each expanded node's parent.
    """

    def __init__(self, width: int) -> None:
        self.token_ids: list[int] = []
        self.parents: list[int] = []
        self._width = width
        # Of all nodes met: token, parent's number (-1 for the root), log-probability of the path, children
        # first met first.
        self._met: list[tuple[int, int, float]] = []
        self._rows: dict[int, int] = {-1: 0}
        self._frontier: list[int] = [-1]

    @property
    def frontier(self) -> list[int]:
        """Rows of the nodes that the draft is to look beyond next."""
        return [self._rows[node] for node in self._frontier]

    @property
    def frontier_parents(self) -> list[int]:
        """Rows of these nodes' parents."""
        return [self.parents[row - 1] for row in self.frontier]

    def paths(self) -> np.ndarray:
        """[frontier, expanded] bool: the expanded nodes that lead to each node of the frontier, itself
        included."""
        seen = np.zeros((len(self.token_ids) + 1, len(self.token_ids)), bool)
        for row, parent in enumerate(self.parents, 1):
            seen[row] = seen[parent]
            seen[row, row - 1] = True
        return seen[self.frontier]

    def grow(self, children: Sequence[Candidates]) -> None:
        """Take in what may follow each node of the frontier, and choose the next one."""
        first = len(self._met)
        for node, candidates in zip(self._frontier, children, strict=True):
            before = 0.0 if node < 0 else self._met[node][2]
            self._met += [(token, node, before + min(own, 0.0)) for token, own in candidates if own > -math.inf]
        best = sorted(range(first, len(self._met)), key=lambda node: -self._met[node][2])[: self._width]
        self._frontier = sorted(best)
        for node in self._frontier:
            self._rows[node] = len(self._rows)
            self.token_ids.append(self._met[node][0])
            self.parents.append(self._rows[self._met[node][1]])

    def best(self, nodes: int) -> Tree:
        """The most probable nodes of all that were met, at most so many: a tree, for no path is more probable
        than its beginning."""
        order = sorted(range(len(self._met)), key=lambda node: -self._met[node][2])[:nodes]
        number = {node: place for place, node in enumerate(order)} | {-1: -1}
        met = [self._met[node] for node in order]
        return Tree(
            token_ids=[token for token, _, _ in met],
            parents=tuple(number[parent] for _, parent, _ in met),
            probabilities=tuple(math.exp(logprob) for _, _, logprob in met),
        )
