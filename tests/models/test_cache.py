"""The cache against transformers' own, and the things that transformers' own cannot do."""

import pytest
import torch
from transformers import DynamicCache

from pard2.models.cache import KVCache
from tiny import tiny_model

ARCHITECTURES = ["llama", "mistral", "gemma2"]  # the last two with a window of 8


def run(model, cache, ids):
    with torch.inference_mode():
        return model(input_ids=ids, past_key_values=cache, use_cache=True).logits


def tokens(length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_logits_as_transformers_cache_in_uneven_pieces(architecture):
    model = tiny_model(architecture)
    ours, theirs = KVCache(2, capacity=4), DynamicCache(config=model.config)  # a capacity that must grow twice
    for piece in tokens(30).split([5, 1, 9, 1, 14], dim=1):
        torch.testing.assert_close(run(model, ours, piece), run(model, theirs, piece), rtol=1e-4, atol=1e-4)
    assert ours.length == 30


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_after_truncate_as_if_the_rest_had_never_been(architecture):
    """Also past a sliding window, where transformers' own cache has dropped what it would need."""
    model = tiny_model(architecture)
    ids, other = tokens(24), tokens(6, seed=1)
    cache, fresh = KVCache(2), KVCache(2)
    run(model, cache, ids)
    cache.truncate(15)
    run(model, fresh, ids[:, :15])
    torch.testing.assert_close(run(model, cache, other), run(model, fresh, other), rtol=1e-4, atol=1e-4)
    assert cache.length == fresh.length == 21


def test_truncate_refuses_what_it_does_not_hold():
    cache = KVCache(2)
    run(tiny_model(), cache, tokens(4))
    for length in (5, -1):
        with pytest.raises(ValueError, match="4 positions"):
            cache.truncate(length)
    cache.truncate(4)
    cache.truncate(0)
    assert cache.length == cache.get_seq_length() == 0


def test_growing_keeps_the_past_and_truncation_is_free():
    model = tiny_model()
    small, large = KVCache(2, capacity=1), KVCache(2, capacity=64)
    for piece in tokens(20).split(1, dim=1):
        assert torch.equal(run(model, small, piece), run(model, large, piece))
    buffer = large.layers[0].keys.data_ptr()
    large.truncate(3)
    run(model, large, tokens(5))
    assert large.layers[0].keys.data_ptr() == buffer


def test_keep_rows_keeps_the_right_sequences_in_order():
    model = tiny_model()
    ids = tokens(10, rows=4)
    cache = KVCache(2)
    run(model, cache, ids[:, :9])
    rows = torch.tensor([3, 1])
    cache.keep_rows(rows)
    whole = run(model, KVCache(2), ids)[rows, -1:]
    torch.testing.assert_close(run(model, cache, ids[rows, 9:]), whole, rtol=1e-4, atol=1e-4)


def test_keep_rows_of_an_empty_cache_is_nothing():
    cache = KVCache(2)
    cache.keep_rows(torch.tensor([0]))
    assert cache.length == 0
