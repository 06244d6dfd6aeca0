"""`verify` and the audit behind it: they must find an engine that says anything else than its target."""

import dataclasses
import json

import pytest
import torch

from conftest import CONTEXT
from pard2.engine import engine as engine_module
from pard2.engine.audit import audit, demands_equality, first_difference, gaps_to_first_choice, greedy_reference
from pard2.engine.engine import Engine
from pard2.models.packed import pack_linears
from tiny import greedy, perfect_draft, random_prompts, set_eos, tiny_draft, tiny_target


def change(monkeypatch, edit):
    """Makes the engine deliver edited token ids."""
    complete = Engine._complete

    def edited(self, prompt, params):
        completion = complete(self, prompt, params)
        return dataclasses.replace(completion, token_ids=edit(list(completion.token_ids)))

    monkeypatch.setattr(engine_module.Engine, "_complete", edited)


def wrong_fifth(tokens):
    tokens[4] = (tokens[4] + 1) % 60
    return tokens


def half_precision(target):
    target.model.to(torch.bfloat16)
    return target


@pytest.mark.parametrize("prepare", [lambda target: target, half_precision], ids=["float32", "bfloat16"])
class TestBothWays:
    def test_an_honest_engine_passes(self, prepare):
        target = prepare(tiny_target(layers=3))
        draft = tiny_draft(target).to(target.model.dtype)
        audits = list(audit(Engine(target, draft), random_prompts(3), 20, near_tie=1.0))
        assert [one.lossless for one in audits] == [True] * 3
        assert [one.new_tokens for one in audits] == [20] * 3 and audits[0].acceptance_length > 1

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
        whole = next(iter(Engine(target).generate([prompt]))).token_ids
        end = whole.index(whole[6])
        set_eos(target, whole[6])
        change(monkeypatch, lambda tokens: whole[: end + 3])
        (one,) = audit(Engine(target), [prompt], 20)
        assert one.first_difference == end + 1

    def test_a_prompt_up_to_the_context_limit_passes(self, prepare):
        target = prepare(tiny_target(context=32))
        (one,) = audit(Engine(target), [list(range(30))], 20)
        assert one.lossless and one.new_tokens == 3


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
    engine = Engine(target)
    monkeypatch.setattr("pard2.engine.audit.gaps_to_first_choice", lambda logits, tokens: [float("nan")] * len(tokens))
    (one,) = audit(engine, random_prompts(1), 4)
    assert one.first_difference == 0


def test_packed_layers_are_not_held_to_equality():
    target = tiny_target()
    assert demands_equality(target)
    if "fbgemm" in torch.backends.quantized.supported_engines:
        pack_linears(target.model)
        assert target.model.dtype == torch.float32 and not demands_equality(target)
    assert not demands_equality(half_precision(tiny_target()))


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


@pytest.fixture
def verify(pard2, target_directory, draft_directory):
    return lambda *options: pard2("verify", "-t", target_directory, "-d", draft_directory, "--device", "cpu", "--max-new-tokens", 10, *options)


def test_verify_says_lossless(verify):
    result = verify()
    assert result.code == 0
    assert result.out.splitlines()[-1].startswith("lossless: 8 of 8 prompts (pard2-td, float32: tokens equal to transformers' greedy generate")


def test_verify_fails_with_exit_code_1(verify, monkeypatch):
    change(monkeypatch, wrong_fifth)
    result = verify("-m", "pard2-ti")
    assert result.code == 1 and "NOT lossless: 0 of 8 prompts (pard2-ti" in result.out and "token 4" in result.out


def test_verify_json(verify, tmp_path):
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "old answer"}]
    file.write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    result = verify("--prompts", file, "--json", "--dtype", "bfloat16", "--near-tie", 2.0)
    answer = json.loads(result.out)
    assert result.code == 0 and answer["lossless"] and answer["near_tie"] == 2.0 and answer["method"] == "pard2-td"
    (one,) = answer["prompts"]
    assert one["lossless"] and one["new_tokens"] == 10 and one["prompt_tokens"] < 40


def test_verify_bad_input(verify, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "a", "messages": [{"role": "system", "content": "x"}]}\n')
    assert "record a has no user message" in verify("--prompts", file).error
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "x" * CONTEXT}]}) + "\n")
    assert "shorten the prompt" in verify("--prompts", file).error
    assert "--draft-tokens 7" in verify("--draft-tokens", 7).error
