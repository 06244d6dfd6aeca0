"""Where completions end, what they report, and what the engine refuses."""

import time

import pytest
import torch

from pard2 import Engine, SamplingParams
from pard2.engine.statistics import Stats
from pard2.errors import Pard2Error
from tiny import greedy, pard_draft, perfect_draft, random_prompts, set_eos, tiny_draft, tiny_lm_draft, tiny_target

PROMPT = [5, 17, 3, 3, 42, 8, 29, 11]


def complete(engine, prompt=PROMPT, max_tokens=24, **params):
    (out,) = engine.generate([prompt], SamplingParams(max_tokens=max_tokens, **params))
    return out


def accepting(target, draft_tokens=4):
    """An engine whose every proposal is accepted."""
    return Engine(target, perfect_draft(target), "vsd", draft_tokens)


# --- ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", range(1, 21))
def test_exactly_max_tokens(max_tokens):
    target = tiny_target()
    expected = greedy(target, PROMPT, 20)[:max_tokens]
    for engine in (Engine(target), accepting(target), Engine(target, tiny_draft(target), "pard2-td", 6)):
        out = complete(engine, max_tokens=max_tokens)
        assert (out.token_ids, out.finish_reason) == (expected, "length")
        assert len(out.token_ids) == 1 + out.stats.cycles + out.stats.accepted


def test_the_last_block_does_not_propose_what_could_not_be_emitted():
    steps = list(accepting(tiny_target(), 4).stream(PROMPT, SamplingParams(max_tokens=8)))
    assert [(step.proposed, step.accepted) for step in steps] == [(0, 0), (4, 4), (1, 1)]
    assert [step.finish_reason for step in steps] == [None, None, "length"]


def first_occurrences(text):
    return [i for i, token in enumerate(text) if token not in text[:i]]


def test_nothing_after_eos_wherever_it_falls_in_a_block():
    target = tiny_target(seed=2)
    text = greedy(target, PROMPT, 24)
    places = first_occurrences(text)
    assert len(places) > 8
    for place in places:
        set_eos(target, text[place])
        for engine in (Engine(target), accepting(target), Engine(target, tiny_draft(target), "pard2-ti", 6)):
            out = complete(engine)
            assert (out.token_ids, out.finish_reason) == (text[: place + 1], "stop")
            assert len(out.token_ids) == 1 + out.stats.cycles + out.stats.accepted


def test_every_one_of_several_eos_ids_ends_the_answer():
    target = tiny_target(seed=2)
    text = greedy(target, PROMPT, 24)
    early, late = first_occurrences(text)[3], first_occurrences(text)[6]
    set_eos(target, text[late], text[early])
    assert complete(accepting(target)).token_ids == text[: early + 1] == greedy(target, PROMPT, 24)
    set_eos(target, text[late])
    target.config.eos_token_id = [text[early]]
    assert complete(accepting(target)).token_ids == text[: early + 1]


def test_ignore_eos_runs_to_the_limit():
    target = tiny_target(seed=2)
    text = greedy(target, PROMPT, 24)
    set_eos(target, text[4])
    out = complete(accepting(target), ignore_eos=True)
    assert (out.token_ids, out.finish_reason) == (text, "length")


def test_eos_as_very_first_token_makes_no_cycle():
    target = tiny_target()
    set_eos(target, greedy(target, PROMPT, 1)[0])
    out = complete(accepting(target))
    assert (len(out.token_ids), out.finish_reason, out.stats.cycles) == (1, "stop", 0)


def test_eos_on_the_last_allowed_token_is_a_stop():
    target = tiny_target(seed=2)
    text = greedy(target, PROMPT, 24)
    place = first_occurrences(text)[5]
    set_eos(target, text[place])
    assert complete(accepting(target), max_tokens=place + 1).finish_reason == "stop"


def test_statistics_count_only_what_was_emitted():
    """EOS as third of five tokens in the first block: two accepted, the end counted as the target's own."""
    target = tiny_target(seed=2)
    text = greedy(target, PROMPT, 24)
    assert 3 in first_occurrences(text)
    set_eos(target, text[3])
    out = complete(accepting(target, 4))
    assert out.token_ids == text[:4]
    assert (out.stats.accepted_per_cycle, out.stats.proposed_per_cycle) == ((2,), (2,))
    assert out.stats.acceptance_length == 3 and out.stats.accepted_by_position == [1, 1]


# --- the context ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [25, 31, 32])
def test_prompts_up_to_the_context_and_not_a_position_past_it(length):
    """gpt2 has no position past its context, so that reading one too far fails.

    A last token past it is never read.
    """
    target = tiny_target(architecture="gpt2", context=32)
    prompt = random_prompts(1, seed=1)[0] * 40
    expected = greedy(target, prompt[:length], 32 - length + 1)
    for engine in (Engine(target), accepting(target), Engine(target, tiny_draft(target), "pard2-td", 6)):
        out = complete(engine, prompt[:length], max_tokens=100)
        assert (out.token_ids, out.finish_reason) == (expected, "length")


def test_prompt_longer_than_the_context_is_refused_with_both_lengths():
    with pytest.raises(Pard2Error, match=r"33 tokens.*32"):
        Engine(tiny_target(context=32)).stream([1] * 33)


@pytest.mark.parametrize("method", ["vsd", "pard"])
@pytest.mark.parametrize("length", [8, 22, 23, 24, 40])
def test_a_draft_with_a_shorter_context_falls_silent_there(method, length):
    target = tiny_target()
    draft = tiny_lm_draft(context=24, architecture="gpt2") if method == "vsd" else pard_draft(target, architecture="gpt2", context=24)
    prompt = (PROMPT * 5)[:length]
    steps = list(Engine(target, draft, method, 4).stream(prompt, SamplingParams(max_tokens=30)))
    assert [token for step in steps for token in step.token_ids] == greedy(target, prompt, 30)
    reached = length
    for step in steps:
        assert reached + step.proposed - 1 <= 24 or step.proposed == 0
        reached += len(step.token_ids)
    assert any(step.proposed for step in steps) == (length < 24)


# --- reports ----------------------------------------------------------------------------------------


def test_steps_and_completion_tell_the_same():
    target = tiny_target()
    engine = Engine(target, tiny_draft(target), "pard2-td", 5)
    steps, out = list(engine.stream(PROMPT, SamplingParams(max_tokens=20))), complete(engine, max_tokens=20)
    assert [token for step in steps for token in step.token_ids] == out.token_ids
    assert Stats.of(steps).accepted_per_cycle == out.stats.accepted_per_cycle
    assert all(len(step.token_ids) == step.accepted + 1 and step.accepted <= step.proposed <= 5 for step in steps)
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert (out.prompt_tokens, out.text, out.method) == (8, None, "pard2-td")


def test_plain_decoding_is_one_token_a_cycle():
    stats = complete(Engine(tiny_target()), max_tokens=9).stats
    assert (stats.cycles, stats.proposed, stats.acceptance_length, stats.draft_seconds < stats.verify_seconds) == (8, 0, 1.0, True)


def test_times_cover_the_cycle():
    target = tiny_target()
    stats = complete(Engine(target, tiny_draft(target), "pard2-td", 5)).stats
    assert min(stats.prefill_seconds, stats.draft_seconds, stats.verify_seconds, stats.other_seconds) > 0


@pytest.mark.parametrize("budget", [64, 3])
def test_the_time_of_the_first_token_covers_all_passes_over_the_prompt(monkeypatch, budget):
    target = tiny_target()
    run = target.run
    monkeypatch.setattr(target, "run", lambda *given: time.sleep(0.03) or run(*given))
    monkeypatch.setattr("pard2.engine.scheduler.PREFILL_TOKENS", budget)
    (out,) = Engine(target, None, "ar").generate([[1, 2, 3, 4, 5, 6, 7]], SamplingParams(max_tokens=2))
    passes = -(-7 // budget)
    assert 0.03 * passes <= out.stats.prefill_seconds < 0.03 * passes + 0.025


def test_target_reads_the_prompt_once_and_takes_features_only_for_td(monkeypatch):
    target = tiny_target()
    run = target.run
    for method, features in [("pard2-td", True), ("pard2-ti", False), ("ar", False)]:
        seen = []
        monkeypatch.setattr(target, "run", lambda batch, *rest, seen=seen: seen.append((batch.num_tokens, run(batch, *rest))) or seen[-1][1])
        complete(Engine(target, tiny_draft(target), method, 3))
        assert seen[0][0] == len(PROMPT) and max(rows for rows, _ in seen[1:]) <= 4
        assert all((output.features is not None) == features for _, output in seen)
        assert len(seen[0][1].logits) == 1, "a head over a whole prompt is a waste"
        assert all(output.logits.is_inference() for _, output in seen)


def test_callers_code_between_steps_is_not_in_inference_mode():
    """Else a trainer that evaluates by decoding would find its tensors frozen."""
    engine, seen = Engine(tiny_target()), []
    for _ in engine.stream(PROMPT, SamplingParams(max_tokens=3)):
        assert not torch.is_inference_mode_enabled()
    request = engine.submit(PROMPT, SamplingParams(max_tokens=3), on_step=lambda step: seen.append(torch.is_inference_mode_enabled()))
    while not request.done:
        engine.step()
    assert seen == [False] * 3


def test_auto_begins_by_trying_learns_from_prompt_to_prompt_and_keeps_to_what_was_trained():
    target = tiny_target()
    engine = Engine(target, tiny_draft(target), "pard2-td")
    first = complete(engine, max_tokens=40)
    learnt = engine._cycle._lengths.population.rates()
    second = complete(engine, max_tokens=40)
    assert first.token_ids == second.token_ids == greedy(target, PROMPT, 40)
    assert first.stats.proposed_per_cycle[0] == max(first.stats.proposed_per_cycle) == 6
    assert learnt != Engine(target, tiny_draft(target), "pard2-td")._cycle._lengths.population.rates()
    assert engine._cycle._lengths.population.rates() != learnt


def test_interrupt_passes_through_and_leaves_the_engine_whole(monkeypatch):
    target = tiny_target()
    engine = Engine(target, tiny_draft(target), "pard2-td", 4)
    stream = engine.stream(PROMPT, SamplingParams(max_tokens=20))
    next(stream)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(target, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(stream)
    assert not torch.is_inference_mode_enabled()
    assert engine.idle and engine.free_cache_tokens == engine.cache_tokens
    assert complete(engine, max_tokens=20).token_ids == greedy(target, PROMPT, 20)


# --- refusals ---------------------------------------------------------------------------------------


def test_default_method_is_the_best_that_the_draft_allows():
    target = tiny_target()
    draft = tiny_draft(target)
    assert Engine(target).method == "ar"
    assert Engine(target, tiny_lm_draft()).method == "vsd"
    assert Engine(target, pard_draft(target)).method == "pard"
    assert Engine(target, draft).method == "pard2-td"
    draft.projection = None
    assert Engine(target, draft).method == "pard2-ti"


@pytest.mark.parametrize(
    ("draft", "method", "draft_tokens", "message"),
    [
        (None, "vsd", "auto", "`draft`"),
        (None, "pard2-td", "auto", "`draft`"),
        (None, "eagle", "auto", "`method` 'eagle' is not one of ar, ngram, vsd"),
        (lambda target: tiny_lm_draft(), "pard", "auto", "mask token.*`method` vsd"),
        (lambda target: tiny_lm_draft(), "pard2-td", "auto", "mask token.*`method` vsd"),
        (pard_draft, "pard2-td", "auto", "no projection; use `method` pard2-ti"),
        (tiny_draft, None, 0, "`draft_tokens` 0.*at least 1"),
        (tiny_draft, None, -2, "`draft_tokens` -2"),
        (tiny_draft, None, 7, "`draft_tokens` 7.*trained for 6"),
        (tiny_draft, "pard2-ti", 7, "`draft_tokens` 7.*trained for 6"),
        (tiny_draft, None, "many", "`draft_tokens` 'many'"),
        (None, "ar", 0, "`draft_tokens` 0"),
    ],
)
def test_misfits_are_refused_by_the_name_of_their_flag(draft, method, draft_tokens, message):
    target = tiny_target()
    with pytest.raises(Pard2Error, match=message):
        Engine(target, draft and draft(target), method, draft_tokens)


def test_a_draft_of_a_deeper_target_is_refused_before_decoding():
    deep, shallow = tiny_target(layers=4), tiny_target(layers=2)
    draft = tiny_draft(deep)
    draft.spec = type(draft.spec)(**(vars(draft.spec) | {"target_layers": (-1, -5)}))
    with pytest.raises(Pard2Error, match="feature layer -5"):
        Engine(shallow, draft)


def test_a_method_that_lacks_its_draft_is_refused_before_loading():
    with pytest.raises(Pard2Error, match="`draft`"):
        Engine.from_pretrained("/no/such/model", method="vsd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "`max_batch` 0"),
        ({"cache_tokens": 1}, "`cache_tokens` 1"),
        ({"draft_sampling": "random"}, "`draft_sampling` 'random'"),
        ({"verification": "blocks"}, "`verification` 'blocks'"),
        ({"verification": "block"}, "add `draft_sampling` sampled"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_the_long_load(options, message):
    with pytest.raises(Pard2Error, match=message):
        Engine(tiny_target(), **options)
    with pytest.raises(Pard2Error, match=message):
        Engine.from_pretrained("/no/such/model", **options)


def test_max_tokens_of_zero_is_refused():
    with pytest.raises(Pard2Error, match="`max_tokens` 0"):
        SamplingParams(max_tokens=0)
