"""Attention of single rows against softmax in float64, and against itself in other company."""

import numpy as np
import pytest

from pard2.kernels.weight_format import has_panels

pytestmark = pytest.mark.skipif(not has_panels(), reason="no numba, or a processor that our kernels are not written for")
if has_panels():
    from pard2.kernels.attention import attend

# Heads, key heads and their width: groups of 1 to 9, widths that vectors do not divide.
SHAPES = [(9, 3, 64), (4, 4, 20), (6, 1, 128), (32, 8, 64), (2, 1, 8), (9, 1, 100), (5, 1, 3)]
SEEN = [[2, 3, 0, 0, 0, 0], [5, 42, 0, 0, 0, 0], [1, 30, 3, 50, 70, 33], [0, 60, 1, 60, 0, 0], [9, 9, 2, 4, 8, 0]]  # the last: singles alone


def world(heads: int, kv_heads: int, width: int, rows: int):
    generator = np.random.default_rng(heads)
    keys, values = (generator.standard_normal((80, kv_heads, width), dtype=np.float32) for _ in range(2))
    return generator.standard_normal((rows, heads, width), dtype=np.float32), keys, values


def run(queries, keys, values, visible, parts=1):
    out, group = np.empty_like(queries), queries.shape[1] // keys.shape[1]
    for part in range(parts):
        scores = np.full((group, 100), np.nan, np.float32)
        attend(queries, (keys.ctypes.data, values.ctypes.data, keys.shape[1]), np.array(visible), 0.25, scores, out, part, parts)
    return out


def places(seen):
    return [*range(seen[0], seen[1]), *seen[3 : 3 + seen[2]]]


@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_a_row_attends_to_what_it_sees(heads, kv_heads, width):
    queries, keys, values = world(heads, kv_heads, width, len(SEEN))
    out = run(queries, keys, values, SEEN)
    for row, seen in enumerate(SEEN):
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = keys[places(seen), shared].astype(np.float64) @ queries[row, head] * 0.25
            chances = np.exp(scores - scores.max())
            expected = chances / chances.sum() @ values[places(seen), shared]
            np.testing.assert_allclose(out[row, head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_a_row_comes_out_the_same_in_any_company_and_number_of_parts(heads, kv_heads, width):
    queries, keys, values = world(heads, kv_heads, width, len(SEEN))
    together = run(queries, keys, values, SEEN)
    assert np.array_equal(together, run(queries, keys, values, SEEN, parts=3))
    for row, seen in enumerate(SEEN):
        assert np.array_equal(together[row], run(queries[row : row + 1], keys, values, [seen])[0])
        moved = places(seen)  # side by side
        assert np.array_equal(together[row], run(queries[row : row + 1], keys[moved], values[moved], [[0, len(moved), 0]])[0])


def test_a_key_that_is_no_number_is_not_lost():
    queries, keys, values = world(9, 3, 64, 1)
    keys[30, 1] = np.nan
    out = run(queries, keys, values, [[5, 42, 0]])
    assert np.isnan(out[0, 3:6]).all() and np.isfinite(out[0, [0, 1, 2, 6, 7, 8]]).all()
