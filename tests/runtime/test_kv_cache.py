"""Memory of the cache: whose it is, and that it comes back whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pard2.runtime.kv_cache import CacheRegion, KVCache

SIZE = 40


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=60))
def test_extents_never_overlap_and_all_comes_back(moves):
    """Any order of giving out and giving back; a gap that stays split would one day refuse a long text in an empty cache."""
    cache = KVCache(1, SIZE)
    held: list[CacheRegion] = []
    for reserve, number in moves:
        if reserve:
            extent = cache.reserve(number)
            if extent is None:
                taken = {p for one in held for p in range(one.start, one.end)}
                free = "".join("x" if p in taken else "." for p in range(SIZE))
                assert "." * number not in free, "refused though there is room"
                continue
            assert extent.size == number and extent.start >= 0 and extent.end <= SIZE
            assert all(extent.end <= one.start or one.end <= extent.start for one in held)
            held.append(extent)
        elif held:
            cache.release(held.pop(number % len(held)))
        assert cache.free == SIZE - sum(one.size for one in held)
    for extent in held:
        cache.release(extent)
    assert cache.reserve(SIZE) == CacheRegion(0, SIZE)


def test_what_is_free_cannot_be_given_back():
    """Two sequences would own it afterwards."""
    cache = KVCache(1, SIZE)
    first, second = cache.reserve(10), cache.reserve(10)
    assert first is not None and second is not None
    cache.release(first)
    for extent in (first, CacheRegion(first.start, 3), CacheRegion(5, 8), CacheRegion(30, 2)):
        with pytest.raises(ValueError, match="free already"):
            cache.release(extent)
    assert cache.free == 30
    cache.release(second)
    assert cache.free == SIZE


def test_memory_is_taken_when_a_layer_is_first_written_and_then_kept():
    """Buffers that were made anew would lose the past."""
    cache = KVCache(2, SIZE)
    like = torch.zeros(0, dtype=torch.bfloat16)
    keys, values = cache.layer(1, 2, 4, 6, like)
    assert len(keys) >= SIZE and keys.shape[1:] == (2, 4) and values.shape[1:] == (2, 6) and keys.dtype == torch.bfloat16
    assert cache.layer(1, 2, 4, 6, like)[0] is keys
    assert cache.layer(0, 2, 4, 6, like)[0] is not keys
