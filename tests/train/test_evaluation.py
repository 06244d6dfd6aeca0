"""Evaluation in the middle of training.

Decoding joins matrices of the draft (`models.fused`), and training must not notice.
"""

import copy
import filecmp
import json

import pytest
import torch
from torch import nn
from train_runs import CONVERSATIONS, assert_bit_for_bit, packed_loss, prepare, save_target, write_records

from chat_tokenizer import MASK_ID, VOCABULARY, byte_tokenizer
from pard2 import Engine, SamplingParams, Stats
from pard2.checkpoints.write import save_draft
from pard2.config import ObjectiveConfig, OptimizerConfig
from pard2.data.chat import prompt_ids
from pard2.data.corpus import Example
from pard2.engine.request import Completion
from pard2.errors import Pard2Error
from pard2.kernels.weight_format import has_panels
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.train import evaluate as evaluation
from pard2.train.evaluate import TIMED_PROMPTS, acceptance, check_evaluation, evaluate, evaluation_target, held_out_prompts, speed
from pard2.train.loop import train
from pard2.train.optimizer import Optimizer
from tiny import tiny_draft, tiny_target

K = 4
RECORDS = [
    {"id": str(n), "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for n, (question, answer) in enumerate(CONVERSATIONS)
]


SHARED = {"share_vocabulary": True, "standardise_features": True}


# Joined matrices without and with bias, and none.
@pytest.mark.parametrize(("architecture", "draft"), [("llama", {}), ("llama", SHARED), ("qwen2", {}), ("gpt2", SHARED)])
def test_a_run_with_evaluations_ends_with_the_weights_of_one_without(make_config, quiet, tmp_path, architecture, draft):
    held_out = write_records(tmp_path / "held-out.jsonl", CONVERSATIONS[:2])
    target = {"name": str(save_target(tmp_path / architecture, architecture))}
    loop = {"evaluate_every": 3, "evaluation_tokens": 6}
    runs = []
    for name, data in (("without", {}), ("with", {"evaluation": str(held_out)})):
        runs.append(make_config(target=target, draft={"mask_token": MASK_ID} | draft, data=data, loop=loop | {"output": str(tmp_path / name)}))
        train(runs[-1], quiet)
    assert '"evaluation"' in (tmp_path / "with" / "metrics.jsonl").read_text()
    assert_bit_for_bit(*(run.loop.output for run in runs))


@pytest.fixture
def target() -> Target:
    target = tiny_target(vocab=VOCABULARY, layers=3)
    target.tokenizer = byte_tokenizer()
    return target


@pytest.fixture
def draft(target: Target) -> Draft:
    return tiny_draft(target, [0, 2], draft_tokens=K, projection=0.05, mask_token=MASK_ID).requires_grad_(True)


def optimizer_of(draft: Draft) -> Optimizer:
    return Optimizer(dict(draft.named_parameters()), OptimizerConfig(lr=0.02, warmup_steps=0))


def take_steps(target: Target, draft: Draft, optimizer: Optimizer, count: int) -> None:
    """Teach the draft what the target says to the first record."""
    assert draft.spec is not None and draft.spec.target_layers is not None
    (prompt,) = held_out_prompts(target, RECORDS[:1])
    (completion,) = Engine(target).generate([prompt], SamplingParams(max_tokens=30))
    example = Example.of("0", prompt + completion.token_ids, [False] * len(prompt) + [True] * len(completion.token_ids))
    objective = ObjectiveConfig(draft_tokens=K, feature_drop=0.0)
    for step in range(count):
        prepared = prepare(target, [example], objective, seed=step)
        out = packed_loss(draft, target, prepared, objective)
        (out.loss / out.weight).backward()
        optimizer.clip()
        optimizer.step(step, count)


def test_the_optimizer_still_trains_the_models_own_parameters(target, draft):
    """Weights that became other objects, or inference tensors, would never be updated again."""
    optimizer = optimizer_of(draft)
    evaluate(target, draft, held_out_prompts(target, RECORDS), 6)
    assert [id(p) for p in draft.parameters()] == [id(p) for p in optimizer.parameters.values()]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.is_leaf and not p.is_inference() for p in draft.parameters())
    before = copy.deepcopy(draft.state_dict())
    take_steps(target, draft, optimizer, 1)
    still = [name for name, tensor in draft.state_dict().items() if tensor.equal(before[name])]
    assert still == []


@pytest.mark.parametrize("method", ["pard2-td", "pard2-ti"])
def test_evaluating_again_sees_the_new_weights(target, draft, method):
    """Copies made at the first evaluation would be evaluated for the rest of the run."""
    prompts = held_out_prompts(target, RECORDS[:1])
    first = acceptance(target, draft, prompts, method, 30)
    take_steps(target, draft, optimizer_of(draft), 60)
    second = acceptance(target, draft, prompts, method, 30)
    fresh = tiny_draft(target, [0, 2], draft_tokens=K, projection=0.0, mask_token=MASK_ID)
    fresh.load_state_dict(draft.state_dict())
    assert second == acceptance(target, fresh, prompts, method, 30)
    assert second["acceptance_length"] > first["acceptance_length"] + 1


def test_every_weight_of_the_draft_is_read_anew(target, draft):
    """The same, weight by weight: a norm that is never read again costs too little
    acceptance to be noticed above."""
    prompts = [prompt_ids(target.tokenizer, record["messages"][:1]) for record in RECORDS[:2]]

    def said(of: Draft) -> list[Stats]:
        completions = Engine(target, of, "pard2-td", K).generate(prompts, SamplingParams(max_tokens=12, temperature=1.0, seed=1))
        return [completion.stats.accepted_per_cycle for completion in completions]

    said(draft)
    generator = torch.Generator().manual_seed(0)
    for parameter in draft.parameters():
        with torch.no_grad():
            parameter.mul_(1 + 2 * torch.rand(parameter.shape, generator=generator))
        fresh = copy.deepcopy(draft)
        fresh.__dict__.pop("decoder")
        assert said(draft) == said(fresh)


def test_what_is_saved_after_an_evaluation_is_what_was_saved_before(target, draft, tmp_path):
    """Views of a joint matrix, saved carelessly, bring the whole matrix each time, or are refused."""
    sizes = []
    for name in ("before", "after"):
        save_draft(draft, tmp_path / name, torch.bfloat16)
        save_draft(draft, tmp_path / f"{name}-float32", torch.float32)
        torch.save(draft.state_dict(), tmp_path / f"{name}.pt")
        sizes.append((tmp_path / f"{name}.pt").stat().st_size)
        evaluate(target, draft, held_out_prompts(target, RECORDS), 6)
    assert sizes[1] <= sizes[0] + 1024

    for kind in ("", "-float32"):
        names = sorted(file.name for file in (tmp_path / f"before{kind}").iterdir())
        assert filecmp.cmpfiles(tmp_path / f"before{kind}", tmp_path / f"after{kind}", names, shallow=False)[0] == names


def test_it_counts_as_stats_do_and_asks_what_users_ask(target):
    """By position: of the cycles that proposed so far.

    A share of all cycles would fall towards every answer's end, where less is proposed.
    """
    draft = tiny_draft(target, draft_tokens=K, mask_token=MASK_ID)  # all layers, so that some guesses are right

    def measured(turns: int) -> list[Stats]:
        prompts = [prompt_ids(target.tokenizer, record["messages"][:turns]) for record in RECORDS]
        return [completion.stats for completion in Engine(target, draft, "pard2-ti", K).generate(prompts, SamplingParams(max_tokens=7))]

    result = acceptance(target, draft, held_out_prompts(target, RECORDS), "pard2-ti", 7)
    stats = sum(measured(1), Stats())
    assert result["acceptance_length"] == stats.acceptance_length
    assert result["accepted_by_position"] == [round(rate, 4) for rate in stats.accepted_by_position]
    assert (result["prompts"], result["cycles"], result["draft_tokens"]) == (len(RECORDS), stats.cycles, K)
    # Else neither definition nor prompts would matter.
    assert stats.proposed < K * stats.cycles
    assert stats.accepted_per_cycle != sum(measured(2), Stats()).accepted_per_cycle


def test_the_mode_without_features_comes_first_or_a_mode_is_left_out(target, draft):
    prompts = held_out_prompts(target, RECORDS)
    results = evaluate(target, draft, prompts, 6)
    assert [result["method"] for result in results] == ["pard2-td", "pard2-ti"]
    for result in results:
        again = acceptance(target, draft, prompts, result["method"], 6)
        assert result.items() >= again.items()
        assert result["speedup"] > 0 and result["timed_prompts"] == min(TIMED_PROMPTS, len(prompts))
    json.dumps(results, allow_nan=False)
    draft.projection = None
    assert [result["method"] for result in evaluate(target, draft, prompts, 6)] == ["pard2-ti"]


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]], tokens: int = 12) -> list[tuple[str, int]]:
    """Answers of `tokens` tokens, in cycles of one for `ar` and of two for a draft, that take so many
    seconds; returns who was asked what."""
    asked: list[tuple[str, int]] = []

    def complete(engine: Engine, prompts: list[list[int]], max_tokens: int) -> list[Completion]:
        (prompt,) = prompts
        asked.append((engine.method, prompt[0]))
        each = 0 if engine.method == "ar" else 1
        cycles = tokens // (1 + each)
        stats = Stats(
            accepted_per_cycle=(each,) * cycles,
            proposed_per_cycle=(each,) * cycles,
            prefill_seconds=99.0,
            decode_seconds=seconds[engine.method][prompt[0]] if cycles else 0.0,
        )
        return [Completion(token_ids=[1] * (tokens + 1), text=None, finish_reason="length", prompt_tokens=1, stats=stats, method=engine.method)]

    monkeypatch.setattr(evaluation, "_complete", complete)
    return asked


def test_speed_is_a_mean_of_ratios_or_counts_the_prompts_pass(target, draft, monkeypatch):
    """Of all prompts together: 24 tokens in 4 s and in 8 s, beside 24 tokens in 12 s."""
    asked = timed(monkeypatch, {"ar": [2.0, 10.0], "pard2-td": [1.0, 3.0], "pard2-ti": [2.0, 6.0]})
    found = speed(target, draft, [[0], [1]], ("pard2-td", "pard2-ti"), 12)
    assert found["pard2-td"]["speedup"] == pytest.approx(3.0) and found["pard2-ti"]["speedup"] == pytest.approx(1.5)
    assert found["pard2-td"]["speedup_interval"] == pytest.approx([2.0, 10 / 3])
    assert (found["pard2-td"]["tokens_per_second"], found["pard2-td"]["plain_tokens_per_second"]) == (6.0, 2.0)
    # Warmed up, then in turn; whoever came first comes last the next time.
    assert asked[3:] == [("ar", 0), ("pard2-td", 0), ("pard2-ti", 0), ("pard2-ti", 1), ("pard2-td", 1), ("ar", 1)]


def test_answers_of_one_token_divide_by_zero(target, draft, monkeypatch):
    timed(monkeypatch, {}, tokens=0)
    (found,) = speed(target, draft, [[0], [1]], ("pard2-td",), 12).values()
    assert found["speedup"] is None and found["speedup_interval"] is None and found["timed_prompts"] == 0


def test_prompts_that_end_at_once_make_an_acceptance_that_is_no_number(target, draft):
    result = acceptance(target, draft, held_out_prompts(target, RECORDS), "pard2-td", 1)
    assert result["cycles"] == 0 and result["acceptance_length"] == 1 and result["acceptance_length_interval"] == [1, 1]
    assert acceptance(target, draft, held_out_prompts(target, RECORDS[:1]), "pard2-td", 4)["acceptance_length_interval"] is None


def test_an_interval_is_of_cycles_or_of_means_of_prompts(target, draft, monkeypatch):
    """Prompts are drawn anew, and with them all of their cycles: 1 cycle that accepted 3 tokens
    and 8 that accepted 1 each."""
    each = [Stats(accepted_per_cycle=(3,), proposed_per_cycle=(4,)), Stats(accepted_per_cycle=(1,) * 8, proposed_per_cycle=(4,) * 8)]
    empty = {"token_ids": [], "text": None, "finish_reason": "stop", "prompt_tokens": 1, "method": "pard2-td"}
    monkeypatch.setattr(evaluation, "_complete", lambda *_: [Completion(**empty, stats=stats) for stats in each])
    result = acceptance(target, draft, [[0], [1]], "pard2-td", 12)
    assert result["acceptance_length"] == pytest.approx(1 + 11 / 9)
    assert result["acceptance_length_interval"] == [2.0, 4.0]


def test_a_broken_target_counts_as_a_bad_draft(target, draft):
    with torch.no_grad():
        target.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(Pard2Error, match="evaluation by .* failed: .* gave logits that are no numbers"):
        acceptance(target, draft, held_out_prompts(target, RECORDS), "pard2-td", 4)


def test_a_prompt_is_read_without_its_tools(target):
    template = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    target.tokenizer.chat_template = template
    record = {"id": "x", "messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function", "function": {"name": "look"}}]}
    assert target.tokenizer.decode(held_out_prompts(target, [record])[0]) == "look;hi"


def test_a_record_that_is_no_prompt_stops_the_run_at_its_first_evaluation(target):
    with pytest.raises(Pard2Error, match="data.evaluation: record 'x' has no user message"):
        held_out_prompts(target, [{"id": "x", "messages": [{"role": "system", "content": "y"}]}])
    with pytest.raises(Pard2Error, match="data.evaluation: record 'y': the prompt has 5.. tokens, the context of .* is 256"):
        held_out_prompts(target, [{"id": "y", "messages": [{"role": "user", "content": "y" * 500}]}])


@pytest.mark.skipif(not has_panels(), reason="no numba, or a processor that our kernels are not written for")
def test_evaluating_with_int8_leaves_the_training_as_it_is(make_config, quiet, tmp_path):
    """`loop.evaluation_weights` decodes with a copy."""
    held_out = write_records(tmp_path / "held-out.jsonl", CONVERSATIONS[:2])
    target, runs = {"name": str(save_target(tmp_path / "target", "llama"))}, []
    for form in ("auto", "int8"):
        loop = {"output": str(tmp_path / form), "evaluate_every": 3, "evaluation_tokens": 6, "evaluation_weights": form}
        runs.append(make_config(target=target, draft={"mask_token": MASK_ID}, data={"evaluation": str(held_out)}, loop=loop))
        train(runs[-1], quiet)
    assert '"evaluation"' in (tmp_path / "int8" / "metrics.jsonl").read_text()
    assert_bit_for_bit(*(run.loop.output for run in runs))
    assert evaluation_target(runs[0], trained := tiny_target()) is trained
    assert evaluation_target(runs[1], trained).weight_format == "int8"


def test_evaluating_with_int8_on_a_gpu_is_refused_before_anything_is_read(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = make_config(loop={"output": str(tmp_path / "run"), "device": "cuda", "evaluation_weights": "int8"})
    with pytest.raises(Pard2Error, match="^`loop.evaluation_weights` int8 is for decoding on a CPU, not on cuda; say `device` cpu"):
        check_evaluation(config)
