"""The tree of a draft that guesses token by token, against all paths of a small random model."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2 import SamplingParams
from pard2.engine.draft_selection import DraftSelector
from pard2.engine.dynamic_tree import DynamicTree
from pard2.engine.processors import TokenCounts
from pard2.engine.sequence import Sequence

INF = math.inf
# By path, the logits of what may follow it; a draft cannot say what has -inf.
LOGITS = st.sampled_from([-INF, -2.0, -1.0, 0.0, 0.0, 0.5, 1.5])


@st.composite
def models(draw, distinct=False):
    """A random model of `tokens` tokens: the log-probability of each token after each path."""
    tokens, depth = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    said = {}
    for length in range(depth):
        for path in itertools.product(range(tokens), repeat=length):
            row = draw(st.lists(st.floats(-3, 3) if distinct else LOGITS, min_size=tokens, max_size=tokens))
            total = math.log(sum(math.exp(x) for x in row)) if max(row) > -INF else 0.0
            said[path] = [x - total for x in row]
    return tokens, depth, said


def grown(said, depth, width):
    """The tree after so many depths, and the frontier's paths at each."""
    tree, frontiers = DynamicTree(width), []
    paths = {0: ()}  # by row
    for _ in range(depth):
        frontiers.append([paths[row] for row in tree.frontier])
        found = []
        for path in frontiers[-1]:
            candidates = sorted(enumerate(said[path]), key=lambda candidate: -candidate[1])
            found.append(candidates[:width])
        tree.grow(found)
        for row in tree.frontier:
            paths[row] = (*paths[tree.parents[row - 1]], tree.token_ids[row - 1])
        if not tree.frontier:
            break
    return tree, frontiers


def paths_of(tree):
    paths = []
    for token, parent in zip(tree.token_ids, tree.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def logprob(said, path):
    return sum(said[path[:place]][token] for place, token in enumerate(path))


@settings(max_examples=150, deadline=None)
@given(models(), st.integers(1, 90))
def test_of_a_width_that_leaves_nothing_out_the_best_paths_of_all_are_taken(model, nodes):
    tokens, depth, said = model
    every = {path: logprob(said, path) for length in range(1, depth + 1) for path in itertools.product(range(tokens), repeat=length)}
    every = {path: value for path, value in every.items() if value > -INF}
    tree, _ = grown(said, depth, tokens**depth)
    best = tree.best(nodes)
    paths = paths_of(best)
    assert len(paths) == len(set(paths)) == min(nodes, len(every))
    assert [math.exp(every[path]) for path in paths] == pytest.approx(best.probabilities)
    assert sorted((every[path] for path in paths), reverse=True) == pytest.approx(sorted(every.values(), reverse=True)[:nodes])


@settings(max_examples=150, deadline=None)
@given(models(distinct=True), st.integers(1, 3), st.integers(1, 40))
def test_a_depth_goes_on_from_its_most_probable_paths_alone(model, width, nodes):
    """And what is proposed are the best of all that were met, whether or not they were gone on from."""
    tokens, depth, said = model
    frontier, met = [()], []
    tree, frontiers = grown(said, depth, width)
    for seen in frontiers:
        assert {*seen} == {*frontier}
        children = [(*path, token) for path in frontier for token in sorted(range(tokens), key=lambda token: -said[path][token])[:width]]
        met += children
        frontier = sorted(children, key=lambda path: -logprob(said, path))[:width]
    expected = sorted((math.exp(logprob(said, path)) for path in met), reverse=True)[:nodes]
    assert list(tree.best(nodes).probabilities) == pytest.approx(expected)
    assert {*paths_of(tree.best(nodes))} <= {*met}


@settings(max_examples=150, deadline=None)
@given(models(), st.integers(1, 4), st.integers(0, 40))
def test_what_is_proposed_is_a_tree_whose_paths_never_get_more_probable(model, width, nodes):
    """With ties and tokens that cannot be said, too; and its beginnings are trees."""
    _, depth, said = model
    best = grown(said, depth, width)[0].best(nodes)
    assert len(best.token_ids) == len(best.parents) == len(best.probabilities) <= nodes
    assert all(-1 <= parent < node for node, parent in enumerate(best.parents))
    assert list(best.probabilities) == sorted(best.probabilities, reverse=True) and all(0 < p <= 1 for p in best.probabilities)
    paths = paths_of(best)
    assert len(set(paths)) == len(paths)
    for path, p in zip(paths, best.probabilities, strict=True):
        assert p == pytest.approx(math.exp(logprob(said, path)))


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(1, 4))
def test_rows_are_those_that_the_draft_is_fed(model, width):
    """The root, then whatever was in a frontier; a row's parent comes before it, `paths` are ancestors."""
    _, depth, said = model
    tree, _ = grown(said, depth, width)
    assert all(0 <= parent <= row for row, parent in enumerate(tree.parents))
    assert tree.frontier_parents == [tree.parents[row - 1] for row in tree.frontier]
    seen = tree.paths()
    assert seen.shape == (len(tree.frontier), len(tree.token_ids))
    for number, row in enumerate(tree.frontier):
        ancestors = set()
        while row > 0:
            ancestors.add(row - 1)
            row = tree.parents[row - 1]
        assert {*seen[number].nonzero()[0].tolist()} == ancestors


def test_of_ties_the_first_met_are_taken_and_parents_before_children():
    """A certain child is as probable as its parent."""
    tree = DynamicTree(2)
    tree.grow([[(5, math.log(0.5)), (6, math.log(0.5))]])
    tree.grow([[(7, 0.0)], [(8, 0.0)]])
    assert tree.best(3).token_ids == [5, 6, 7] and tree.best(3).parents == (-1, -1, 0)
    assert tree.best(4).parents == (-1, -1, 0, 1)
    # Rounding may make a child's own share a hair more than all.
    tree = DynamicTree(1)
    tree.grow([[(5, math.log(0.5))]])
    tree.grow([[(7, 1e-7)]])
    assert tree.best(1).token_ids == [5] and tree.best(2).probabilities == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("nothing", [[], [(3, -INF)], [(3, math.nan)], [(3, -INF), (4, -INF)]])
def test_an_empty_frontier_ends_the_tree(nothing):
    tree = DynamicTree(2)
    tree.grow([nothing])
    assert tree.frontier == [] and tree.best(5).token_ids == []
    tree = DynamicTree(2)
    tree.grow([[(1, -0.5), (2, -1.5)]])
    tree.grow([nothing, [(9, -0.1)]])
    assert [tree.token_ids[row - 1] for row in tree.frontier] == [9] and tree.frontier_parents == [2]
    tree.grow([nothing])
    assert tree.frontier == [] and tree.best(9).token_ids == [1, 2, 9]


# --- from logits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_each_path_is_penalised_for_itself(temperature):
    """Two nodes of a frontier, of which one has said what a penalty is on."""
    params = SamplingParams(temperature=temperature, presence_penalty=2.0, logit_bias={4: -100.0}, min_tokens=9, seed=1)
    sequence = Sequence(prompt=[1], params=params, seed=0, index=0, max_new_tokens=20, stop_token_ids=frozenset({5}), text=None)
    sequence.counts = TokenCounts([1], 6)
    selector = DraftSelector([sequence], "greedy", "token", 6, [9])
    tree, heat = DynamicTree(2), temperature or 1.0
    logits = torch.tensor([[0.0, 1.0, 3.0, 2.0, 9.0, 9.0]])
    ((found,),) = selector.children(logits, [0], [tree], 0, 2)
    scores = (torch.tensor([0.0, 1.0, 3.0, 2.0, -91.0, -INF]) / heat).log_softmax(-1)
    assert [token for token, _ in found] == [2, 3]
    assert [own for _, own in found] == pytest.approx([float(scores[2]), float(scores[3])], abs=1e-4)
    tree.grow([found])
    (found,) = selector.children(logits.repeat(2, 1), [0], [tree], 1, 2)
    assert [[token for token, _ in candidates] for candidates in found] == [[3, 1], [2, 1]]


def test_logits_that_are_no_distribution_have_no_children():
    sequence = Sequence(prompt=[1], params=SamplingParams(), seed=0, index=0, max_new_tokens=20, stop_token_ids=frozenset(), text=None)
    selector = DraftSelector([sequence], "greedy", "token", 4, [9])
    for bad in (math.nan, INF):
        assert selector.children(torch.tensor([[0.0, bad, 1.0, 2.0]]), [0], [DynamicTree(2)], 0, 2) == [[[]]]
    assert selector.children(torch.full((1, 4), -INF), [0], [DynamicTree(2)], 0, 2) == [[[]]]
    ((found,),) = selector.children(torch.tensor([[0.0, -INF, 1.0, 2.0]]), [0], [DynamicTree(2)], 0, 2)
    assert [token for token, _ in found] == [3, 2]
