"""The greedy audit must find an engine that says anything else than its target."""

import dataclasses

import pytest
import torch

from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.kernels.weight_format import convert_linears, has_panels
from pard2.models.target import Target
from pard2.verify.greedy import audit, demands_equality, first_difference, gaps_to_first_choice, greedy_reference
from tiny import greedy, perfect_draft, random_prompts, set_eos, tiny_draft, tiny_model, tiny_target


def change(monkeypatch, edit):
    """Makes the engine deliver edited token ids."""
    completions = Engine.completions

    def edited(self, prompts, params=None, raw=False):
        for completion in completions(self, prompts, params, raw):
            yield dataclasses.replace(completion, token_ids=edit(list(completion.token_ids)))

    monkeypatch.setattr(Engine, "completions", edited)


def wrong_fifth(tokens):
    tokens[4] = (tokens[4] + 1) % 60
    return tokens


def half_precision(target):
    target.model.to(torch.bfloat16)
    return target


@pytest.mark.parametrize("prepare", [lambda target: target, half_precision], ids=["float32", "bfloat16"])
class TestBothWays:
    def test_an_honest_engine_passes_alone_and_together(self, prepare):
        target = prepare(tiny_target(layers=3))
        draft = tiny_draft(target).to(target.model.dtype)
        audits = list(audit(Engine(target, draft), random_prompts(3), 20, near_tie=1.0, together=True))
        assert [one.lossless for one in audits] == [True] * 6
        assert [one.together for one in audits] == [False] * 3 + [True] * 3
        assert [one.new_tokens for one in audits] == [20] * 6 and audits[0].acceptance_length > 1

    def test_a_wrong_token_is_found_where_it_is(self, prepare, monkeypatch):
        change(monkeypatch, wrong_fifth)
        (one,) = audit(Engine(prepare(tiny_target())), random_prompts(1), 12)
        assert not one.lossless and one.first_difference == 4

    @pytest.mark.parametrize("edit", [lambda t: t[:-1], lambda t: t[:5]], ids=["one token short", "half"])
    def test_text_that_stops_too_early_is_found(self, prepare, monkeypatch, edit):
        change(monkeypatch, edit)
        (one,) = audit(Engine(prepare(tiny_target())), random_prompts(1), 12)
        assert one.first_difference == one.new_tokens

    def test_text_after_the_end_token_is_found(self, prepare, monkeypatch):
        target = prepare(tiny_target())
        (prompt,) = random_prompts(1)
        whole = Engine(target).generate([prompt], SamplingParams(max_tokens=20))[0].token_ids
        end = whole.index(whole[6])
        set_eos(target, whole[6])
        change(monkeypatch, lambda tokens: whole[: end + 3])
        (one,) = audit(Engine(target), [prompt], 20)
        assert one.first_difference == end + 1

    def test_a_prompt_up_to_the_context_limit_passes(self, prepare):
        target = prepare(tiny_target(context=32))
        (one,) = audit(Engine(target), [list(range(30))], 20)
        assert one.lossless and one.new_tokens == 3

    def test_sequences_that_disturb_each_other_are_found(self, prepare, monkeypatch):
        """An engine that is right alone and wrong in company, as one that pads or mixes up caches is."""
        target = prepare(tiny_target())
        completions = Engine.completions

        def mixed_up(self, prompts, params=None, raw=False):
            return completions(self, [prompts[0]] * len(prompts), params, raw)

        monkeypatch.setattr(Engine, "completions", mixed_up)
        audits = list(audit(Engine(target), random_prompts(3), 12, near_tie=1.0, together=True))
        assert [one.lossless for one in audits] == [True] * 4 + [False] * 2


def test_a_perfect_draft_is_seen_in_the_acceptance_length():
    target = tiny_target()
    (one,) = audit(Engine(target, perfect_draft(target), draft_tokens=3), random_prompts(1), 13)
    assert one.acceptance_length == 4


def test_near_ties_are_counted_and_bounded():
    gaps = gaps_to_first_choice(torch.tensor([[1.0, 3.0], [2.0, 1.5], [0.0, 0.0]]), torch.tensor([1, 1, 1]))
    assert gaps == [0.0, 0.5, 0.0]


def test_a_nan_is_no_near_tie(monkeypatch):
    """`gap > tolerance` is false for NaN; a broken model must not pass."""
    target = half_precision(tiny_target())
    monkeypatch.setattr("pard2.verify.greedy.gaps_to_first_choice", lambda logits, tokens: [float("nan")] * len(tokens))
    (one,) = audit(Engine(target), random_prompts(1), 4)
    assert one.first_difference == 0


def test_a_decoding_that_fails_is_no_difference_but_an_error():
    target = half_precision(tiny_target())
    with torch.no_grad():
        target.model.lm_head.weight[3] = float("nan")
    with pytest.raises(Pard2Error, match="NaN.*`dtype` float32"):
        list(audit(Engine(target), random_prompts(1), 4))


def test_packed_layers_are_not_held_to_equality():
    target = tiny_target()
    assert demands_equality(target)
    if "fbgemm" in torch.backends.quantized.supported_engines:
        convert_linears(target.model, "fbgemm")
        assert target.model.dtype == torch.float32 and not demands_equality(target)
    assert not demands_equality(half_precision(tiny_target()))


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="this build of torch cannot pack")
@pytest.mark.parametrize(("architecture", "form"), [("llama", "fbgemm"), ("gpt2", "fbgemm"), ("llama", "panels"), ("llama", "int8")])
def test_a_packed_target_can_be_audited(architecture, form):
    """Its own forward pass must still run where the decoder has taken its layers over."""
    target = Target(tiny_model(architecture).to(torch.bfloat16), name="packed", weight_format=form)
    audits = list(audit(Engine(target), random_prompts(2), 12, near_tie=0.05, together=True))
    assert [one.lossless for one in audits] == [True] * 4


@pytest.mark.skipif(not has_panels(), reason="no numba, or a processor that our kernels are not written for")
@pytest.mark.parametrize("form", ["panels", "int8"])
def test_our_own_forms_are_held_to_equality_with_plain_decoding(form, monkeypatch):
    """A token that a near-tie would let pass, and that plain decoding does not say."""
    target = Target(half_precision(tiny_target()).model, weight_format=form)
    engine, prompts = Engine(target, max_batch=2), random_prompts(2)
    assert all(one.lossless for one in audit(engine, prompts, 12, near_tie=100.0, together=True))
    completions = Engine.completions

    def differs(self, prompts, params=None, raw=False):
        for completion in completions(self, prompts, params, raw):
            yield dataclasses.replace(completion, token_ids=wrong_fifth(list(completion.token_ids))) if self is engine else completion

    monkeypatch.setattr(Engine, "completions", differs)
    found = list(audit(engine, prompts, 12, near_tie=100.0, together=True))
    assert [one.first_difference for one in found] == [4] * 4 and found[0].largest_gap > 0


@pytest.mark.parametrize(
    ("ours", "theirs", "where"), [([1, 2], [1, 2], None), ([1, 3], [1, 2], 1), ([1], [1, 2], 1), ([1, 2], [1], 1), ([], [], None)]
)
def test_first_difference(ours, theirs, where):
    assert first_difference(ours, theirs) == where


def test_the_reference_is_plain_greedy_whatever_the_generation_config_says():
    """A chat model's generation_config.json often samples and penalises repetition."""
    target, (prompt,) = tiny_target(), random_prompts(1)
    expected = greedy(target, prompt, 20)
    config = target.model.generation_config
    config.do_sample, config.temperature, config.repetition_penalty, config.top_k = True, 5.0, 3.0, 7
    assert greedy_reference(target, prompt, 20) == expected
    set_eos(target, expected[4])
    assert greedy_reference(target, prompt, 20) == expected[: expected.index(expected[4]) + 1]
