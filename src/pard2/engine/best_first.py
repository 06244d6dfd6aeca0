"""The most probable tree of a given size, from the distributions that a parallel draft gives at each depth.

DDTree and OPT-Tree (METHOD: section 8): a parallel draft's distribution at depth j does not depend on what
was chosen before, so the probability of a path is the product of its tokens'. Nodes are taken by falling
probability: the best tree of n nodes is the best one of n - 1 nodes and one more. It knows no tensors.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

# The tokens that may follow a path, best first, with the logarithms of their probabilities.
Candidates = Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Nodes in the order in which they were taken, so that the first n are the best tree of n nodes.

    token_ids, parents, probabilities: [nodes], as in `Proposal`.
    """

    token_ids: list[int]
    parents: tuple[int, ...]
    probabilities: tuple[float, ...]


def best_first(levels: Sequence[Candidates], nodes: int, on_path: Callable[[Candidates, list[int]], Candidates] | None = None) -> Tree:
    """The most probable tree of at most `nodes` nodes.

    levels: the candidates at each depth. A tree is never deeper than they are many.
    on_path: the candidates of a level below a path of tokens, where they depend on it
        (penalties); may not add any.
    """
    token_ids: list[int] = []
    parents: list[int] = []
    probabilities: list[float] = []
    paths: list[list[int]] = []
    # (-log probability, order of arrival, parent, path to the parent, candidates of
    # this place, rank among them)
    waiting: list[tuple[float, int, int, list[int], Candidates, int]] = []
    arrivals = 0

    def wait(parent: int, path: list[int], before: float, candidates: Candidates, rank: int) -> None:
        nonlocal arrivals
        if rank < len(candidates) and candidates[rank][1] > -math.inf:
            arrivals += 1
            heappush(waiting, (-(before + candidates[rank][1]), arrivals, parent, path, candidates, rank))

    def open_children(node: int, path: list[int], before: float) -> None:
        if len(path) < len(levels):
            level = levels[len(path)]
            wait(node, path, before, level if on_path is None else on_path(level, path), 0)

    open_children(-1, [], 0.0)
    while waiting and len(token_ids) < nodes:
        negative, _, parent, path, candidates, rank = heappop(waiting)
        token, own = candidates[rank]
        node = len(token_ids)
        token_ids.append(token)
        parents.append(parent)
        probabilities.append(math.exp(-negative))
        paths.append([*path, token])
        wait(parent, path, -negative - own, candidates, rank + 1)
        open_children(node, paths[node], -negative)
    return Tree(token_ids=token_ids, parents=tuple(parents), probabilities=tuple(probabilities))
