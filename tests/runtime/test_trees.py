"""A tree's tokens in one pass against each token's own path in a chain, through every
decoder and architecture."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2.errors import Pard2Error
from pard2.kernels.attention import attend
from pard2.runtime.graphs import GraphedDecoder
from pard2.runtime.hidden_states import HiddenStateRecorder
from pard2.runtime.kv_cache import CacheRegion, KVCache
from pard2.runtime.llama_decoder import LlamaDecoder, is_llama_like
from pard2.runtime.padded_batch import PaddedBatch, PaddedDecoder, PaddedShape
from pard2.runtime.support import check_trees, new_decoder
from pard2.runtime.token_batch import QuerySpan, TokenBatch
from pard2.runtime.transformers_decoder import TransformersDecoder
from tiny import tiny_model

LLAMA_LIKE = ["llama", "qwen2", "qwen3", "mistral"]
LAYERS = {"gemma2": 4, "gemma3_text": 6, "gemma3n_text": 6, "olmo3": 4, "cohere2": 4, "exaone4": 4}  # for both kinds of layers to occur
OTHERS = ["gemma", "gemma2", "gemma3_text", "phi3", "phi", "gpt_neox", "olmo2", "olmo3", "starcoder2", "cohere", "cohere2", "granite", "glm4"]
OTHERS += ["nemotron", "smollm3", "exaone4", "gpt2", "gpt_bigcode", "opt", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gemma3n_text"]

# A tree grows by a token whose parent is one of the latest few or any: both deep trees, past the
# windows of 8, and bushy ones.
trees = st.builds(
    lambda steps: (-1, *(max(0, min(step, number)) if wide else max(0, number - step) for number, (step, wide) in enumerate(steps))),
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=17),
)


@cache
def decoders(architecture):
    """All that can run an architecture, over one model."""
    model = tiny_model(architecture, layers=LAYERS.get(architecture, 2))
    if not is_llama_like(model):
        plain = new_decoder(model, architecture, HiddenStateRecorder(model))
        assert isinstance(plain, TransformersDecoder)
        return [plain, PaddedDecoder(plain)]
    plain = LlamaDecoder(model)
    graphed = GraphedDecoder(plain, 4, lambda run: (run(), run)[1])
    found = [new_decoder(model, architecture, HiddenStateRecorder(model)), plain, PaddedDecoder(plain), graphed]
    return [*found, TransformersDecoder(model, HiddenStateRecorder(model))]


@torch.inference_mode()
def run(decoder, cache, spans, tokens):
    """Logits [count, vocabulary] of each span."""
    batch = TokenBatch(cache, spans, torch.tensor(tokens))
    logits = decoder.run(batch, None, torch.arange(len(tokens))).logits
    assert logits is not None
    return logits.split([span.count for span in spans])


def draw_tokens(count, seed):
    return torch.randint(0, 60, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def path(parents, node):
    return [*path(parents, parents[node]), node] if node else [0]


def assert_every_node_is_its_path(decoder, parents, past, seed):
    """Beside a chain of two tokens and a prompt of three."""
    layers = 6
    count = len(parents)
    text, other, third = (draw_tokens(length, seed + n) for n, length in enumerate((past + count, 7, 3)))
    cache = KVCache(layers, 3 + past + count + 7 + 3)
    cache.reserve(3)  # so that no region begins at 0
    mine, chain, prompt = (cache.reserve(size) for size in (past + count, 7, 3))
    before = [QuerySpan(mine, 0, past)] if past else []
    run(decoder, cache, [*before, QuerySpan(chain, 0, 5)], text[:past] + other[:5])
    spans = [QuerySpan(chain, 5, 2), QuerySpan(mine, past, count, parents), QuerySpan(prompt, 0, 3)]
    neighbour, tree, fresh = run(decoder, cache, spans, other[5:] + text[past:] + third)

    paths = [text[:past] + [text[past + at] for at in path(parents, node)] for node in range(count)]
    texts = [other, third, *paths]
    alone = KVCache(layers, sum(map(len, texts)))
    spans = [QuerySpan(alone.reserve(len(one)), 0, len(one)) for one in texts]
    plain = run(decoders_of_chains(decoder), alone, spans, [token for one in texts for token in one])
    expected = torch.stack([logits[-1] for logits in plain[2:]])
    torch.testing.assert_close(tree, expected, rtol=1e-3, atol=1e-3)
    assert tree.argmax(-1).tolist() == expected.argmax(-1).tolist()
    torch.testing.assert_close(neighbour, plain[0][5:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fresh, plain[1], rtol=1e-3, atol=1e-3)


def decoders_of_chains(decoder):
    """The per-sequence twin of a padded decoder."""
    return decoder.decoder if isinstance(decoder, PaddedDecoder) else decoder


@pytest.mark.parametrize("architecture", LLAMA_LIKE)
@settings(max_examples=12, deadline=None)
@given(parents=trees, past=st.integers(0, 20), seed=st.integers(0, 99))
def test_every_node_is_its_path(architecture, parents, past, seed):
    for decoder in decoders(architecture):
        assert_every_node_is_its_path(decoder, parents, past, seed)


@pytest.mark.parametrize("architecture", OTHERS)
@settings(max_examples=3, deadline=None)
@given(parents=trees, past=st.integers(0, 20), seed=st.integers(0, 99))
def test_every_node_is_its_path_in_transformers_own_code(architecture, parents, past, seed):
    for decoder in decoders(architecture):
        check_trees(decoder, architecture)
        assert_every_node_is_its_path(decoder, parents, past, seed)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.none() | trees, st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=4),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    window=st.sampled_from([None, 1, 2, 5, 100]),
    softcap=st.sampled_from([None, 2.0]),
    spare=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 40)),
    seed=st.integers(0, 99),
)
def test_padded_attention_is_that_of_its_twin(shapes, heads, window, softcap, spare, seed):
    """Any mix of trees and chains, in a shape with room for more sequences, tokens
    and context than there are."""
    generator = torch.Generator().manual_seed(seed)
    h, kv = heads
    cache, spans = KVCache(1, 400), []
    for parents, count, past in shapes:
        count = count if parents is None else len(parents)
        spans.append(QuerySpan(cache.reserve(past + count), past, count, parents))
    total = sum(span.count for span in spans)
    q, k, v = (torch.randn(total, n, d, generator=generator) for n, d in ((h, 8), (kv, 8), (kv, 5)))
    keys, values = cache.layer(0, kv, 8, 5, k)
    for buffer in (keys, values):
        buffer[: cache.num_places] = torch.nan  # whatever is not of the batch
        for span in spans:
            buffer[span.region.start : span.region.start + span.num_computed_tokens] = torch.randn(
                span.num_computed_tokens, *buffer.shape[1:], generator=generator
            )
    batch = TokenBatch(cache, spans, torch.arange(total))
    longest = max(span.count for span in spans)
    shape = PaddedShape(len(spans) + spare[0], longest + spare[1], batch.max_context_len + spare[2], batch.has_trees)
    padded = PaddedBatch(cache, shape, batch.device)
    padded.load(TokenBatch(cache, [QuerySpan(CacheRegion(0, 400), 7, longest)], torch.arange(longest)))  # to be overwritten
    ours = padded.load(batch)
    padded.prepare()
    rows = [torch.full((padded.num_tokens, *x.shape[1:]), torch.nan).index_copy_(0, ours, x) for x in (q, k, v)]
    got = padded.attend(0, *rows, 0.3, window, softcap)
    expected = batch.attend(0, q, k, v, 0.3, window, softcap)
    torch.testing.assert_close(got[ours], expected, rtol=1e-4, atol=1e-5)
    assert padded.positions[ours].tolist() == batch.positions.tolist()
    assert padded.token_ids[ours].tolist() == batch.token_ids.tolist()


@settings(max_examples=40, deadline=None)
@given(parents=trees, past=st.integers(0, 30), window=st.sampled_from([None, 1, 3, 8]), seed=st.integers(0, 99))
def test_the_kernel_says_of_places_apart_what_it_says_of_places_side_by_side(parents, past, window, seed):
    """To the last bit: a last bit decides near-ties, and trees shall change no text."""
    generator = torch.Generator().manual_seed(seed)
    region = CacheRegion(2, past + len(parents))
    batch = TokenBatch(KVCache(1, 60), [QuerySpan(region, past, len(parents), parents)], torch.arange(len(parents)))
    visible = batch.visible(window)
    queries = torch.randn(len(parents), 4, 8, generator=generator).numpy()
    keys, values = (torch.randn(60, 2, 8, generator=generator).numpy() for _ in range(2))
    scores, out = np.empty((2, 64), np.float32), np.empty_like(queries)
    attend(queries, (keys.ctypes.data, values.ctypes.data, 2), visible, 0.25, scores, out, 0, 1)
    for node in range(len(parents)):
        places = [*range(past), *(past + at for at in path(parents, node))]
        places = [region.start + place for place in (places if window is None else places[-window:])]
        alone = np.empty_like(queries[:1])
        seen, here = np.array([[0, len(places), 0]]), (keys[places], values[places])
        attend(queries[node : node + 1], (here[0].ctypes.data, here[1].ctypes.data, 2), seen, 0.25, scores, alone, 0, 1)
        assert np.array_equal(alone[0], out[node])


def test_a_model_that_counts_its_positions_is_refused_for_trees():
    model = tiny_model("gpt_neox")
    decoder = new_decoder(model, "mine", HiddenStateRecorder(model))
    check_trees(decoder, "mine")
    forward = model.forward
    model.forward = (
        lambda position_ids, **given: forward(  # type: ignore[assignment, method-assign]
            position_ids=position_ids[:, :1] + torch.arange(position_ids.shape[1]), **given
        )
    )
    with pytest.raises(Pard2Error, match="'mine' .GPTNeoXForCausalLM. cannot verify trees"):
        check_trees(decoder, "mine")


@pytest.mark.parametrize("parents", [(-1, 1), (-1, 0, 3), (0, 0), (-1, -1), (-1, 0), ()])
def test_what_is_no_tree_of_three_is_refused(parents):
    """A parent behind its child would be read before it is written."""
    with pytest.raises(ValueError, match="not the parents of a tree of 3"):
        QuerySpan(CacheRegion(0, 9), 2, 3, parents)
