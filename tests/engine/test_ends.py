"""Where an answer ends: not before `min_tokens`, at the caller's tokens, with or without what ended it."""

from functools import cache

import pytest
import torch
from test_prompts import WORDS, word_tokenizer

from engines import DRAFTED, METHODS, new_draft
from pard2 import Engine, Pard2Error, SamplingParams
from pard2.engine.text import TextStream
from pard2.models.target import Target
from tiny import greedy, random_prompts, set_eos, tiny_target

NEW, LEAST = 24, 9
PROMPTS = random_prompts(4, seed=3)


@cache
def ending_target() -> tuple[Target, tuple[int, ...]]:
    """A target that would end each of these answers early, and its end tokens."""
    target = tiny_target()
    ends = tuple(sorted({greedy(target, prompt, NEW)[place] for prompt, place in zip(PROMPTS, (0, 2, 4, 6), strict=True)}))
    set_eos(target, *ends)
    return target, ends


@cache
def theirs(least: int) -> list[list[int]]:
    """transformers' own answers of at least so many tokens."""
    target, _ = ending_target()
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "min_new_tokens": least, "max_new_tokens": NEW, "pad_token_id": 0}
        answers.append(target.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist())
    return answers


def engines(tree: bool = True):
    target, _ = ending_target()
    for method in METHODS:
        yield Engine(target, new_draft(method, target), method, 5, max_batch=3)
    for method in ("pard", "pard2-td") if tree else ():
        yield Engine(target, new_draft(method, target), method, 5, tree=9)


def test_the_answers_would_end_early():
    assert all(len(answer) < LEAST for answer in theirs(0)) and len({len(answer) for answer in theirs(0)}) > 2
    assert all(len(answer) > LEAST for answer in theirs(LEAST))


@pytest.mark.parametrize("least", [1, 4, LEAST, NEW])
def test_the_shortest_answer_is_that_of_transformers_with_every_method(least):
    for engine in engines():
        said = [out.token_ids for out in engine.generate(PROMPTS, SamplingParams(max_tokens=NEW, min_tokens=least))]
        assert said == theirs(least), (engine.method, engine.options.tree)


def test_a_sampled_text_is_that_of_plain_decoding_with_every_method():
    params = SamplingParams(max_tokens=NEW, min_tokens=LEAST, temperature=0.9, top_p=0.95, seed=4)
    penalised = SamplingParams(max_tokens=NEW, min_tokens=LEAST, temperature=0.9, repetition_penalty=1.3, frequency_penalty=0.3, seed=4)
    for settings in (params, penalised):
        plain, *others = ([out.token_ids for out in engine.generate(PROMPTS, settings)] for engine in engines())
        assert all(len(answer) > LEAST for answer in plain) and all(said == plain for said in others)


def test_no_draft_proposes_an_end_that_cannot_be():
    """The text would be the same; more of what is proposed is accepted so."""
    target, ends = ending_target()
    for method in DRAFTED:
        for options in ({}, {"draft_sampling": "sampled"}, {"tree": 9}):
            if method == "vsd" and "tree" in options:
                continue
            engine = Engine(target, new_draft(method, target), method, 5, **options)
            proposed: list[int] = []
            propose = engine._cycle._drafter.propose

            def seen(requests, selector, propose=propose, proposed=proposed):
                drafted = propose(requests, selector)
                proposed.extend(token for proposal in drafted.proposals for token in proposal.token_ids.tolist())
                return drafted

            engine._cycle._drafter.propose = seen
            engine.generate(PROMPTS, SamplingParams(max_tokens=NEW, min_tokens=NEW, temperature=1.0, seed=1))
            assert proposed and not set(proposed) & set(ends), (method, options)


def test_tokens_of_the_callers_own_end_the_answer_as_the_models_do():
    target = tiny_target()
    whole = greedy(target, PROMPTS[0], NEW)
    place = next(place for place in range(3, NEW) if whole[place] not in whole[:place])
    for method in METHODS:
        engine = Engine(target, new_draft(method, target), method, 5)
        ended, ignoring, later = engine.generate(
            [PROMPTS[0]] * 3,
            [
                SamplingParams(max_tokens=NEW, stop_token_ids=[whole[place]]),
                SamplingParams(max_tokens=NEW, stop_token_ids=[whole[place]], ignore_eos=True),
                SamplingParams(max_tokens=NEW, stop_token_ids=[whole[place]], min_tokens=place + 1),
            ],
        )
        assert ended.token_ids == ignoring.token_ids == whole[: place + 1] and ended.finish_reason == "stop"
        assert len(later.token_ids) > place + 1 and later.token_ids[place] != whole[place]


def test_what_the_vocabulary_lacks_or_is_made_of_is_refused():
    engine = Engine(tiny_target())
    with pytest.raises(Pard2Error, match="^`stop_token_ids` names token 61: the vocabulary ends at 60$"):
        engine.generate([[1]], SamplingParams(stop_token_ids=[61]))
    with pytest.raises(Pard2Error, match="^`min_tokens`: every token"):
        engine.generate([[1]], SamplingParams(stop_token_ids=range(61), min_tokens=1))


# --- text ---------------------------------------------------------------------------------------------


@pytest.fixture
def speaking() -> Target:
    target = tiny_target()
    target.tokenizer = word_tokenizer()
    return target


def test_what_ended_an_answer_is_kept_where_it_is_asked_for(speaking):
    """A stop text, and a token that ends it and has a text."""
    engine = Engine(speaking)
    (whole,) = engine.generate([[8, 7]], SamplingParams(max_tokens=12))
    words = whole.text.split(" ")
    place = next(place for place in range(2, 12) if words[place] not in words[:place])
    for how in ({"stop": words[place]}, {"stop_token_ids": [whole.token_ids[place]]}):
        (cut,), (kept,) = (
            engine.generate([[8, 7]], SamplingParams(max_tokens=12, include_stop_str_in_output=include, **how)) for include in (False, True)
        )
        assert cut.token_ids == kept.token_ids == whole.token_ids[: place + 1] and cut.finish_reason == kept.finish_reason == "stop"
        assert cut.text.rstrip() == " ".join(words[:place]) and kept.text == " ".join(words[: place + 1])


def test_a_stop_text_counts_behind_the_shortest_answer_alone(speaking):
    """Wherever cycles begin and end."""
    (whole,) = Engine(speaking).generate([[8, 7]], SamplingParams(max_tokens=24))
    words = whole.text.split(" ")
    first, second = next((i, j) for i in range(1, 24) for j in range(i + 2, 24) if words[i] == words[j] and words[i] not in words[i + 1 : j])
    for method in METHODS:
        engine = Engine(speaking, new_draft(method, speaking), method, 6)
        for least, place in ((0, first), (first, first), (first + 1, second), (second, second)):
            (out,) = engine.generate([[8, 7]], SamplingParams(max_tokens=24, min_tokens=least, stop=[f" {words[first]}"]))
            assert out.token_ids == whole.token_ids[: place + 1], (method, least)


def test_a_stop_text_does_not_begin_before_it_counts():
    tokenizer = word_tokenizer()
    ids = [WORDS.index(word) for word in ("what", "is", "red", "is", "red", "blue")]
    for parts in ([ids], [[token] for token in ids], [ids[:3], ids[3:]]):
        stream = TextStream(tokenizer, ("is red",), unstoppable=2)
        shown = "".join(stream.push(part).text for part in parts if not stream._ended)
        assert shown + stream.finish() == stream.text == "what is red "
