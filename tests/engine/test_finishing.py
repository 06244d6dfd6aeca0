"""Where texts end and what is told of their tokens: end-of-answer ids, stop strings,
limits, log-probabilities."""

from functools import cache

import pytest
import torch

from chat_tokenizer import byte_tokenizer
from engines import METHODS, new_engine, shared_target
from pard2 import Engine, SamplingParams
from pard2.engine.request import Completion
from pard2.errors import Pard2Error
from pard2.models.target import Target
from tiny import greedy, perfect_draft, random_prompts, set_eos, tiny_draft, tiny_target

PROMPT = [5, 17, 3, 3, 42, 8, 29, 11]


@cache
def speaking() -> Target:
    """Says letters, digits and signs: its vocabulary begins like the byte tokenizer's, where the
    printable ones come first."""
    target = tiny_target(seed=2)
    target.tokenizer = byte_tokenizer(template=None)
    return target


@cache
def said() -> tuple[list[int], str]:
    ids = greedy(speaking(), PROMPT, 24)
    return ids, speaking().tokenizer.decode(ids)


def speaking_engines() -> list[Engine]:
    """Plain; accepting everything, so that ends fall inside of blocks; and accepting some."""
    target = speaking()
    return [Engine(target), Engine(target, perfect_draft(target), "vsd", 5), Engine(target, tiny_draft(target), "pard2-ti", 6)]


def complete(engine: Engine, prompt: list[int] = PROMPT, **params) -> Completion:
    (out,) = engine.generate([prompt], SamplingParams(**({"max_tokens": 24} | params)))
    return out


# --- limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_max_tokens_is_exact_for_every_method_and_k(method):
    """One past it is what a block accepted to its end would bring."""
    expected = greedy(shared_target(), PROMPT, 9)
    for draft_tokens in ("auto",) if method == "ar" else (1, 2, 6, "auto"):
        engine = new_engine(method, draft_tokens)
        outs = engine.generate([PROMPT] * 9, [SamplingParams(max_tokens=n) for n in range(1, 10)])
        assert [out.token_ids for out in outs] == [expected[:n] for n in range(1, 10)]
        assert {out.finish_reason for out in outs} == {"length"}
        assert all(len(out.token_ids) == 1 + out.stats.cycles + out.stats.accepted for out in outs)


def test_the_contexts_end_is_a_length_for_each_sequence_of_a_batch():
    target = tiny_target(context=32)
    prompts = [[1, 2, 3] * 4, [4] * 30, [5] * 32]
    for engine in (Engine(target), Engine(target, tiny_draft(target), "pard2-td", 6)):
        outs = engine.generate(prompts, SamplingParams(max_tokens=100))
        assert [(len(out.token_ids), out.finish_reason) for out in outs] == [(21, "length"), (3, "length"), (1, "length")]


def test_ignore_eos_concerns_one_request_of_a_batch():
    target = tiny_target(seed=2)
    text = greedy(target, PROMPT, 12)
    set_eos(target, text[4])
    engine = Engine(target, perfect_draft(target), "vsd", 5)
    place = text.index(text[4])
    outs = engine.generate([PROMPT] * 2, [SamplingParams(max_tokens=12), SamplingParams(max_tokens=12, ignore_eos=True)])
    assert [(out.token_ids, out.finish_reason) for out in outs] == [(text[: place + 1], "stop"), (text, "length")]


# --- stop strings -------------------------------------------------------------------------------------


def test_the_text_is_worth_stopping():
    _, text = said()
    assert len(text) == 24 and len(set(text)) > 12


@pytest.mark.parametrize("start", [0, 1, 5, 6, 9, 14, 20])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_stop_string_ends_the_text_wherever_it_falls_in_blocks(start, length):
    """Every token is one character, so longer stop strings cross the borders of
    tokens, and some of blocks."""
    ids, text = said()
    stop = text[start : start + length]
    found = text.index(stop)
    for engine in speaking_engines():
        out = complete(engine, stop=[stop, "never said"])
        assert (out.text, out.finish_reason) == (text[:found], "stop")
        assert out.token_ids == ids[: found + length], "up to the token that completed it"
        assert len(out.token_ids) == 1 + out.stats.cycles + out.stats.accepted


def test_of_two_stop_strings_the_one_said_first_counts():
    _, text = said()
    late, early = text[12:15], text[7:9]
    for engine in speaking_engines():
        assert complete(engine, stop=[late, early]).text == text[: text.index(early)]


def test_what_might_have_become_a_stop_string_is_shown_when_it_does_not():
    ids, text = said()
    for engine in speaking_engines():
        out = complete(engine, stop=[text[20:24] + "more"])
        assert (out.text, out.token_ids, out.finish_reason) == (text, ids, "length")


@pytest.mark.parametrize("place", [1, 7, 12])
def test_a_stop_string_on_the_last_allowed_token_is_a_stop(place):
    _, text = said()
    stop = text[place]
    found = text.index(stop)
    for engine in speaking_engines():
        out = complete(engine, stop=stop, max_tokens=found + 1)
        assert (out.text, out.finish_reason, len(out.token_ids)) == (text[:found], "stop", found + 1)


def test_eos_before_a_stop_string_of_the_same_block_and_after_it():
    ids, text = said()
    first = [i for i, token in enumerate(ids) if token not in ids[:i]]
    early, late = first[3], first[5]
    for ends, stop, expected in ((ids[early], text[late], early), (ids[late], text[early], early)):
        target = tiny_target(seed=2)
        target.tokenizer = byte_tokenizer(template=None)
        set_eos(target, ends)
        for engine in (Engine(target), Engine(target, perfect_draft(target), "vsd", 6)):
            out = complete(engine, stop=stop)
            assert (out.text, out.token_ids, out.finish_reason) == (text[:expected], ids[: expected + 1], "stop")


def test_stop_strings_of_one_request_end_no_other():
    _, text = said()
    for engine in speaking_engines():
        outs = engine.generate(
            [PROMPT] * 3, [SamplingParams(max_tokens=24), SamplingParams(max_tokens=24, stop=text[3]), SamplingParams(max_tokens=24, stop=text[9:11])]
        )
        assert [out.text for out in outs] == [text, text[: text.index(text[3])], text[: text.index(text[9:11])]]


def test_each_of_n_completions_has_its_own_text():
    target = speaking()
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=1, n=4, stop="qq")
    for out in Engine(target, perfect_draft(target), "vsd", 4).generate([PROMPT], params):
        assert out.text == target.tokenizer.decode(out.token_ids)


def test_a_stop_string_needs_a_tokenizer():
    with pytest.raises(Pard2Error, match="`stop` needs a tokenizer"):
        Engine(tiny_target()).generate([PROMPT], SamplingParams(stop="x"))


# --- log-probabilities --------------------------------------------------------------------------------

SETTINGS = [
    {},
    {"temperature": 0.7, "top_k": 5, "seed": 3},
    {"repetition_penalty": 1.8, "frequency_penalty": 1.0},
    {"temperature": 1.3, "logit_bias": {9: 5.0}, "presence_penalty": 1.5, "seed": 4},
]


@pytest.mark.parametrize("method", METHODS)
def test_logprobs_are_the_targets_own_before_any_processing(method):
    """Not the draft's, not of the processed logits; also where a token was the draft's guess."""
    prompts = random_prompts(4, seed=8)
    engine = new_engine(method, "auto" if method == "ar" else 4)
    if method == "vsd":
        engine = Engine(shared_target(), perfect_draft(shared_target()), "vsd", 4)
    outs = engine.generate(prompts, [SamplingParams(max_tokens=12, logprobs=3, **settings) for settings in SETTINGS])
    for out, prompt in zip(outs, prompts, strict=True):
        with torch.no_grad():
            logits = shared_target().model(torch.tensor([prompt + out.token_ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.float().log_softmax(-1)
        assert [one.token_id for one in out.logprobs] == out.token_ids
        own = expected.gather(1, torch.tensor(out.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor([one.logprob for one in out.logprobs]), own, atol=1e-4, rtol=1e-4)
        top = expected.topk(3)
        torch.testing.assert_close(torch.tensor([[value for _, value in one.top] for one in out.logprobs]), top.values, atol=1e-4, rtol=1e-4)
        assert [[token for token, _ in one.top] for one in out.logprobs] == top.indices.tolist()
    if method in ("vsd", "pard2-ti"):
        assert sum(out.stats.accepted for out in outs) > 5, "no guess was accepted"


def test_as_many_top_logprobs_as_asked_for_by_each():
    engine = new_engine("pard2-ti", 4)
    outs = engine.generate([PROMPT] * 4, [SamplingParams(max_tokens=7, logprobs=m) for m in (None, 0, 20, 1)])
    assert len({tuple(out.token_ids) for out in outs}) == 1
    assert outs[0].logprobs is None
    assert [{len(one.top) for one in out.logprobs} for out in outs[1:]] == [{0}, {20}, {1}]
    for one in outs[2].logprobs:
        values = [value for _, value in one.top]
        assert values == sorted(values, reverse=True) and one.top[0] == (one.token_id, one.logprob)
    assert [one.logprob for one in outs[1].logprobs] == [one.logprob for one in outs[2].logprobs]


def test_logprobs_end_with_the_tokens_that_an_end_inside_a_block_leaves():
    ids, text = said()
    for engine in speaking_engines():
        out = complete(engine, stop=text[8], logprobs=1)
        assert [one.token_id for one in out.logprobs] == out.token_ids == ids[: text.index(text[8]) + 1]
