"""Attention of several sequences in one pass, against dense attention written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2.runtime.kv_cache import CacheRegion, KVCache
from pard2.runtime.token_batch import QuerySpan, TokenBatch

D = 8


def dense(q, k, v, past, scale, window, softcap):
    """[count, H, D] of one sequence, row by row and head by head.

    q: [count, H, D]; k, v: [past + count, KV, D].
    """
    out = torch.empty(*q.shape[:2], v.shape[-1])
    for row in range(len(q)):
        at = past + row
        first = 0 if window is None else max(0, at - window + 1)
        for head in range(q.shape[1]):
            group = head // (q.shape[1] // k.shape[1])
            scores = k[first : at + 1, group] @ q[row, head] * scale
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            out[row, head] = scores.softmax(-1) @ v[first : at + 1, group]
    return out


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=4),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    window=st.sampled_from([None, 1, 2, 5, 100]),
    softcap=st.sampled_from([None, 2.0]),
    value_dim=st.sampled_from([D, 5]),
    seed=st.integers(0, 99),
)
def test_every_row_attends_as_if_alone(pieces, heads, window, softcap, value_dim, seed):
    """Sequences of different pasts, in passes of different numbers of rows; 0 rows:
    takes no part in that pass."""
    generator = torch.Generator().manual_seed(seed)
    h, kv = heads
    totals = [sum(counts) for counts in pieces]
    q, k, v = ([torch.randn(total, n, d, generator=generator) for total in totals] for n, d in ((h, D), (kv, D), (kv, value_dim)))
    cache = KVCache(2, 40 + 3 * sum(totals))
    cache.reserve(3)  # so that no region begins at 0
    regions = [cache.reserve(total + 2) for total in totals]
    past = [0] * len(pieces)
    for turn in range(max(len(counts) for counts in pieces)):
        going = [(n, counts[turn]) for n, counts in enumerate(pieces) if turn < len(counts) and counts[turn]]
        if not going:
            continue
        ids = torch.zeros(sum(count for _, count in going), dtype=torch.long)
        batch = TokenBatch(cache, [QuerySpan(regions[n], past[n], count) for n, count in going], ids)
        rows = [torch.cat([x[n][past[n] : past[n] + count] for n, count in going]) for x in (q, k, v)]
        got = batch.attend(1, *rows, 0.3, window, softcap)
        expected = torch.cat(
            [dense(rows_of, k[n], v[n], past[n], 0.3, window, softcap) for n, count in going for rows_of in [q[n][past[n] : past[n] + count]]]
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert batch.positions.tolist() == [p for n, count in going for p in range(past[n], past[n] + count)]
        assert batch.num_tokens == len(got)
        for n, count in going:
            past[n] += count


def test_rejected_rows_are_overwritten():
    """A crop is a smaller past, nothing else."""
    torch.manual_seed(0)
    cache = KVCache(1, 16)
    region = cache.reserve(16)
    q, k, v = (torch.randn(6, 2, D) for _ in range(3))

    def attend(past, count, new):
        batch = TokenBatch(cache, [QuerySpan(region, past, count)], torch.zeros(count, dtype=torch.long))
        return batch.attend(0, *(x[past : past + count] for x in new), 1.0)

    attend(0, 3, (q, k, v))
    attend(3, 3, [torch.randn(6, 2, D) for _ in range(3)])
    torch.testing.assert_close(attend(3, 3, (q, k, v)), dense(q[3:], k, v, 3, 1.0, None, None))


@pytest.mark.parametrize(("past", "count"), [(8, 3), (11, 1), (0, 0)])
def test_rows_that_do_not_fit_are_refused(past, count):
    """They would be written over the neighbour's past."""
    with pytest.raises(ValueError, match="do not fit a region of 10"):
        QuerySpan(CacheRegion(5, 10), past, count)
