"""How many nodes of trees are verified, against all other numbers, and in simulated worlds."""

import random
from collections.abc import Callable, Sequence
from itertools import accumulate, product

import pytest
from decoding_worlds import KnownTimes, disturbed, flat, steep
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2.engine.draft_length.pass_times import PassTimes
from pard2.engine.draft_length.plain import Cost
from pard2.engine.draft_length.tree_size import TreeSize

NODES = 24
DRAFT_SECONDS = 0.003
CYCLES = 1000
START = [1.0, 0.25, 0.25, 0.0, 0.0]  # shares of the nodes


def settled(times: PassTimes) -> TreeSize:
    """A size that has its start behind it."""
    size = TreeSize()
    for _ in START:
        size.choose([[1.0]], times, DRAFT_SECONDS)
    return size


falling = st.lists(st.floats(0, 1), max_size=6).map(lambda nodes: sorted(nodes, reverse=True))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(falling, min_size=1, max_size=3),
    st.lists(st.floats(0, 1), min_size=20, max_size=20),
    st.floats(0, 2),
    st.floats(0, 20),
    st.integers(0, 20),
)
def test_other_sizes_are_faster(probabilities: list[list[float]], rises: list[float], draft_seconds: float, expected: float, accepted: int):
    times = KnownTimes(dict(enumerate(accumulate(rises, initial=0.1), 1)))
    size = settled(times)
    size.observe(expected, accepted)
    batch = len(probabilities)

    def speed(counts: Sequence[int]) -> float:
        gains = [min(1.0, size.factor * p) for count, nodes in zip(counts, probabilities, strict=True) for p in nodes[:count]]
        return (batch + sum(gains)) / (draft_seconds + times.estimate(batch + sum(counts)))

    chosen = size.choose(probabilities, times, draft_seconds)
    best = max(map(speed, product(*(range(len(nodes) + 1) for nodes in probabilities))))
    assert speed(chosen) == pytest.approx(best)


def test_a_sequence_without_nodes_stops_the_others():
    times = KnownTimes({1: 1.0})
    size = settled(times)
    assert size.choose([], times, 0.0) == []
    assert size.choose([[], []], times, 0.0) == [0, 0]
    assert size.choose([[], [0.9, 0.8], []], times, 0.0) == [0, 2, 0]


def test_nodes_are_left_out_before_anything_is_known_of_times():
    size, times = TreeSize(), PassTimes()
    nodes = [[0.1] * 8, [0.01] * 3]
    for _ in range(3):
        assert size.choose(nodes, times, 1.0) == [8, 3]
    times.observe(13, 9.0)
    assert size.choose(nodes, times, 1.0) == [8, 3]  # the first pass was not timed
    times.observe(13, 1.0)
    assert [size.choose(nodes, times, 1.0) for _ in START] == [[8, 3], [2, 1], [2, 1], [0, 0], [0, 0]]


def test_the_factor_has_no_bounds_or_no_way_back():
    size = TreeSize()
    assert size.factor == 1
    for _ in range(100):
        size.observe(4.0, 2)
    assert size.factor == pytest.approx(0.5, abs=0.02)
    for _ in range(100):
        size.observe(4.0, 0)
    assert size.factor == 0.25
    for _ in range(300):
        size.observe(0.0, 0)  # nothing verified: what was learnt fades
    assert size.factor == pytest.approx(1, abs=0.1)
    for _ in range(100):
        size.observe(1.0, 9)
    assert size.factor == 2


# ---- simulated worlds


def steady(cycle: int) -> float:
    return 0.7


def changing(cycle: int) -> float:
    """Sure of the next tokens for ten cycles, unsure for ten."""
    return 0.98 if cycle // 10 % 2 else 0.05


def costly(rows: float) -> float:
    return 0.012 + 0.001 * rows


class World:
    """The trees that a draft proposes for one sequence, cycle by cycle.

    confidence: the mean probability of a position's first choice, by cycle
    honesty: a node's chance of being accepted over the draft's probability of it
    """

    def __init__(self, confidence: Callable[[int], float] = steady, honesty: float = 1.0, seed: int = 0) -> None:
        self.honesty = honesty
        self.random = random.Random(seed)
        self.trees = [self._tree(confidence(cycle)) for cycle in range(CYCLES)]

    def _tree(self, confidence: float) -> list[float]:
        """The best nodes from independent distributions of six positions, each with three tokens of note."""
        paths, nodes = [1.0], []
        for _ in range(6):
            first = self.random.betavariate(3 * confidence, 3 * (1 - confidence))
            paths = sorted((path * p for path in paths for p in (first, 0.5 * (1 - first), 0.2 * (1 - first))), reverse=True)[:NODES]
            nodes += paths
        return sorted(nodes, reverse=True)[:NODES]

    def best_fixed(self, target: Cost) -> float:
        """Tokens per second of the best number of nodes, the same in every cycle."""
        tokens = [1 + self.honesty * sum(sum(tree[:count]) for tree in self.trees) / CYCLES for count in range(NODES + 1)]
        return max(tokens[count] / (DRAFT_SECONDS + target(1 + count)) for count in range(NODES + 1))

    def live(self, size: TreeSize, times: PassTimes, target: Cost) -> tuple[float, list[int]]:
        """Tokens per second, and all sizes.

        What is observed is drawn and disturbed; the speed is of expected tokens and undisturbed times.
        """
        tokens = seconds = 0.0
        sizes = []
        for tree in self.trees:
            (count,) = size.choose([tree], times, DRAFT_SECONDS)
            times.observe(1 + count, disturbed(target(1 + count), self.random))
            size.observe(sum(tree[:count]), sum(self.random.random() < self.honesty * p for p in tree[:count]))
            tokens += 1 + self.honesty * sum(tree[:count])
            seconds += DRAFT_SECONDS + target(1 + count)
            sizes.append(count)
        return tokens / seconds, sizes


@pytest.mark.parametrize("honesty", [1.0, 0.5])
@pytest.mark.parametrize("target", [steep, costly, flat])
def test_a_fixed_size_is_faster(target: Cost, honesty: float):
    world = World(honesty=honesty)
    speed, _ = world.live(TreeSize(), PassTimes(), target)
    assert speed > 0.97 * world.best_fixed(target)


def test_the_size_does_not_follow_the_cycle():
    def target(rows: float) -> float:
        return 0.004 * (1 + rows)

    world = World(changing)
    speed, _ = world.live(TreeSize(), PassTimes(), target)
    assert speed > 1.05 * world.best_fixed(target)


def test_a_draft_that_promises_too_much_is_believed():
    _, honest = World().live(TreeSize(), PassTimes(), costly)
    _, boastful = World(honesty=0.4).live(TreeSize(), PassTimes(), costly)
    assert sum(boastful[100:]) < 0.8 * sum(honest[100:])


def test_a_machine_on_which_rows_became_free_is_not_noticed():
    size, times = TreeSize(), PassTimes()
    _, before = World().live(size, times, lambda rows: 0.02 * rows)
    _, after = World(seed=1).live(size, times, flat)
    assert sum(before[-100:]) < 0.3 * 100 * NODES < 0.9 * 100 * NODES < sum(after[-100:])


def test_trials_cost_more_than_they_show():
    times = KnownTimes({1: 1.0, 9: 9.0})
    size = settled(times)
    sizes = [size.choose([[0.5] * 8], times, 0.1)[0] for _ in range(200)]
    assert 0 < sum(count != sizes[0] for count in sizes) <= 4
