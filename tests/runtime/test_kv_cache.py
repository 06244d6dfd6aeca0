"""Memory of the cache: whose it is, that it comes back whole, and what lies in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pard2.runtime.kv_cache import CacheRegion, KVCache

SIZE = 40


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=60))
def test_regions_never_overlap_and_all_comes_back(moves):
    """Any order of giving out and giving back; a gap that stays split would one day refuse a
    long text in an empty cache."""
    cache = KVCache(1, SIZE)
    held: list[CacheRegion] = []
    for reserve, number in moves:
        if reserve:
            region = cache.reserve(number)
            if region is None:
                taken = {p for one in held for p in range(one.start, one.end)}
                free = "".join("x" if p in taken else "." for p in range(SIZE))
                assert "." * number not in free, "refused though there is room"
                continue
            assert region.size == number and region.start >= 0 and region.end <= SIZE
            assert all(region.end <= one.start or one.end <= region.start for one in held)
            held.append(region)
        elif held:
            cache.release(held.pop(number % len(held)))
        assert cache.free == SIZE - sum(one.size for one in held)
    for region in held:
        cache.release(region)
    assert cache.reserve(SIZE) == CacheRegion(0, SIZE)


def test_what_is_free_cannot_be_given_back():
    """Two sequences would own it afterwards."""
    cache = KVCache(1, SIZE)
    first, second = cache.reserve(10), cache.reserve(10)
    assert first is not None and second is not None
    cache.release(first)
    for region in (first, CacheRegion(first.start, 3), CacheRegion(5, 8), CacheRegion(30, 2)):
        with pytest.raises(ValueError, match="free already"):
            cache.release(region)
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


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(pairs=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)), max_size=12, unique_by=lambda pair: pair[1]))
def test_places_are_moved_as_if_all_at_once(indexed, dtype, pairs):
    """In every layer that has been written; sources and destinations overlap.

    indexed: by torch's operations, as on a GPU.
    """
    cache = KVCache(3, SIZE)
    like = torch.zeros(0, dtype=dtype)
    buffers = [buffer for layer in (0, 2) for buffer in cache.layer(layer, 2, 4, 6, like)]
    for buffer in buffers:
        buffer[:] = torch.randn(buffer.shape)
    if indexed:
        cache._bytes.clear()
    expected = [buffer.clone() for buffer in buffers]
    for old, new in zip([buffer.clone() for buffer in buffers], expected, strict=True):
        for source, destination in pairs:
            new[destination] = old[source]
    cache.move([source for source, _ in pairs], [destination for _, destination in pairs])
    assert all(torch.equal(buffer, new) for buffer, new in zip(buffers, expected, strict=True))


def test_every_place_has_somewhere_to_go():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        KVCache(1, SIZE).move([1, 2], [1])
