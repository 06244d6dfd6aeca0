"""The most probable tree of a size, against all trees."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from pard2.engine.best_first import best_first

LEVELS = st.lists(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=3), min_size=1, max_size=3)


def levels_of(weights):
    """Candidates of each level, best first; their probabilities add up to at most 1."""
    levels = []
    for level, values in enumerate(weights):
        ordered = sorted((value / sum(values) for value in values), reverse=True)
        levels.append([(10 * level + rank, math.log(p)) for rank, p in enumerate(ordered)])
    return levels


def all_paths(levels):
    """The probability of every path from the root, by its tokens."""
    found = {}
    for depth in range(1, len(levels) + 1):
        for path in itertools.product(*levels[:depth]):
            found[tuple(token for token, _ in path)] = math.exp(sum(logprob for _, logprob in path))
    return found


def paths_of(tree):
    paths = []
    for token, parent in zip(tree.token_ids, tree.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


@settings(max_examples=200, deadline=None)
@given(LEVELS, st.integers(0, 45))
def test_no_tree_of_its_size_is_more_probable(weights, nodes):
    """A path is never more probable than the one that it goes on from, so the most
    probable paths are a tree."""
    levels = levels_of(weights)
    every, tree = all_paths(levels), best_first(levels, nodes)
    assert len(tree.token_ids) == min(nodes, len(every))
    paths = paths_of(tree)
    assert len(set(paths)) == len(paths), "a node was taken twice"
    for path, probability in zip(paths, tree.probabilities, strict=True):
        assert math.isclose(every[path], probability, rel_tol=1e-9)
    assert list(tree.probabilities) == sorted(tree.probabilities, reverse=True)
    assert math.isclose(sum(tree.probabilities), sum(sorted(every.values(), reverse=True)[:nodes]), rel_tol=1e-9)


def test_what_the_draft_cannot_say_is_no_node():
    tree = best_first([[(3, 0.0), (4, -math.inf)]], 5)
    assert tree.token_ids == [3] and tree.parents == (-1,)


def test_a_level_may_depend_on_the_path():
    """Below token 1 the second level turns round."""
    levels = [[(1, math.log(0.6)), (2, math.log(0.4))], [(8, math.log(0.9)), (9, math.log(0.1))]]
    tree = best_first(levels, 4, lambda level, path: level[::-1] if path == [1] else level)
    assert [path for path in paths_of(tree) if len(path) == 2][:1] == [(2, 8)]
