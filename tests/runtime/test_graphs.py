"""Fixed shapes say what ragged batches say.

Captures are stood in for by running again on the same tensors, which is all that a CPU can do.
"""

import pytest
import torch

from pard2.engine.engine import Engine, SamplingParams
from pard2.errors import Pard2Error
from pard2.runtime.graphs import GraphedDecoder
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.llama_decoder import LlamaDecoder
from pard2.runtime.padded_batch import PaddedBatch, PaddedShape
from pard2.runtime.token_batch import QuerySpan, TokenBatch
from tiny import greedy, random_prompts, tiny_draft, tiny_target


class Replays:
    """Counts captures; a replay may use nothing but what the captured function holds."""

    def __init__(self):
        self.captured = 0

    def __call__(self, run):
        self.captured += 1
        run()
        return run


def graphed(model, most_sequences=4):
    replays = Replays()
    return GraphedDecoder(LlamaDecoder(model), most_sequences, replays), replays


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize("method", ["ar", "pard2-ti", "pard2-td"])
def test_padding_is_seen_by_nobody(architecture, method):
    """Fails if padding rows touch a sequence's past, or a row sees what lies behind its end."""
    target = tiny_target(architecture=architecture, layers=3)
    draft = None if method == "ar" else tiny_draft(target)
    target.decoder, _ = graphed(target.model)
    if draft is not None:
        draft.decoder, _ = graphed(draft.lm)
    prompts = random_prompts(5, longest=30)
    engine = Engine(target, draft, method, max_batch=3, draft_tokens="auto" if draft is None else 3)
    said = [completion.token_ids for completion in engine.generate(prompts, SamplingParams(max_tokens=20))]
    assert said == [greedy(target, prompt, 20) for prompt in prompts]


def test_a_damaged_past_of_a_neighbour_reaches_nobody():
    """Fails if positions behind a sequence's end are read: 0 times NaN is NaN."""
    target = tiny_target()
    decoder, _ = graphed(target.model)
    cache = KVCache(2, 64)
    mine, other = cache.reserve(20), cache.reserve(20)
    prompt = torch.tensor([5, 17, 3])
    clean = decoder.run(TokenBatch(cache, [QuerySpan(mine, 0, 3)], prompt), None, torch.arange(3)).logits
    for number in range(2):
        for buffer in cache.layer(number, 2, 8, 8, clean):
            buffer[other.start : other.end] = torch.nan
            buffer[mine.start + 3 : mine.end] = torch.nan
    again = decoder.run(TokenBatch(cache, [QuerySpan(mine, 0, 3)], prompt), None, torch.arange(3)).logits
    assert torch.equal(again, clean)


def test_few_shapes_serve_many_batches():
    target = tiny_target()
    target.decoder, replays = graphed(target.model)
    engine = Engine(target, max_batch=4)
    list(engine.generate(random_prompts(6), SamplingParams(max_tokens=30)))
    plain = 3  # batches of 1, 2 and 4, one row each
    assert plain <= replays.captured <= plain + 6  # and the prompts' own shapes


def test_an_output_outlives_the_next_replay():
    """Fails if a pass hands out the buffers that the next one overwrites."""
    target = tiny_target()
    decoder, _ = graphed(target.model)
    cache = KVCache(2, 64)
    extent = cache.reserve(20)
    run = lambda token: decoder.run(TokenBatch(cache, [QuerySpan(extent, 0, 1)], torch.tensor([token])), None, torch.arange(1), (0,))  # noqa: E731
    first = run(5)
    kept = first.logits.clone(), first.features.clone()
    run(9)
    assert torch.equal(first.logits, kept[0]) and torch.equal(first.features, kept[1])


def test_a_batch_is_loaded_whole():
    """Fails if a smaller batch leaves tokens of a larger one behind in the tensors that stay."""
    cache = KVCache(1, 64)
    regions = [cache.reserve(16) for _ in range(2)]
    padded = PaddedBatch(cache, PaddedShape(2, 3, 16, False), torch.device("cpu"))
    padded.load(TokenBatch(cache, [QuerySpan(regions[0], 5, 3), QuerySpan(regions[1], 2, 2)], torch.arange(5)))
    ours = padded.load(TokenBatch(cache, [QuerySpan(regions[1], 4, 1)], torch.tensor([7])))
    padded.prepare()
    assert ours.tolist() == [0] and padded.token_ids[0] == 7
    assert padded.positions.tolist() == [4, 0, 0, 0, 0, 0]
    assert padded._places.tolist() == [regions[1].start + 4] + [cache.scrap] * 5
    places, _ = padded._view(None, 1, torch.float32)
    assert places[0].tolist() == [*range(regions[1].start, regions[1].start + 5), *[cache.blank] * 11]
    assert places[1].tolist() == [cache.blank] * 16


def test_graphs_without_a_gpu():
    with pytest.raises(Pard2Error, match="needs a CUDA device"):
        tiny_target().get_ready(True, 4)


def test_an_engine_asked_for_graphs_without_a_gpu():
    with pytest.raises(Pard2Error, match="needs a CUDA device"):
        Engine(tiny_target(), cuda_graphs=True)
