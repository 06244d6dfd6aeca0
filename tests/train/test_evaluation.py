"""Evaluation in the middle of training. Decoding joins matrices of the draft (`models.fused`), and training must not notice."""

import copy
import filecmp

import pytest
import torch
from torch import nn
from train_runs import CONVERSATIONS, assert_bit_for_bit, save_target, write_records

from chat_tokenizer import MASK_ID, VOCABULARY, byte_tokenizer
from pard2 import Engine, SamplingParams, Stats
from pard2.config import ObjectiveConfig, OptimizerConfig
from pard2.data.chat import Example, prompt_ids
from pard2.errors import Pard2Error
from pard2.models.checkpoint import save_draft
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.train.evaluate import acceptance
from pard2.train.loop import train
from pard2.train.optimizer import Optimizer
from pard2.train.step import prepare_row, row_loss
from tiny import tiny_draft, tiny_target

K = 4
RECORDS = [
    {"id": str(n), "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for n, (question, answer) in enumerate(CONVERSATIONS)
]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])  # joined matrices without and with bias, and none
@pytest.mark.parametrize("draft", [{}, {"share_vocabulary": True, "standardise_features": True}], ids=["whole", "shared"])
def test_a_run_with_evaluations_ends_with_the_weights_of_one_without(make_config, quiet, tmp_path, architecture, draft):
    held_out = write_records(tmp_path / "held-out.jsonl", CONVERSATIONS[:2])
    target = {"name": str(save_target(tmp_path / architecture, architecture))}
    loop = {"evaluate_every": 2, "evaluation_tokens": 6}
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
    return Optimizer(draft, OptimizerConfig(lr=0.02, warmup_steps=0))


def take_steps(target: Target, draft: Draft, optimizer: Optimizer, count: int) -> None:
    """Teach the draft what the target says to the first record."""
    assert draft.spec is not None and draft.spec.target_layers is not None
    target.capture(draft.spec.target_layers)
    prompt = prompt_ids(target.tokenizer, RECORDS[0]["messages"][:1])
    (completion,) = Engine(target).generate([prompt], SamplingParams(max_tokens=30))
    example = Example("0", prompt + completion.token_ids, [False] * len(prompt) + [True] * len(completion.token_ids))
    objective = ObjectiveConfig(draft_tokens=K)
    target.capture(draft.spec.target_layers)
    for step in range(count):
        row = prepare_row(target, [example], objective, torch.Generator().manual_seed(step), use_features=True)
        row_loss(draft, target, row, row.weights.sum(), objective).loss.backward()
        optimizer.step(step, count)


def test_the_optimizer_still_trains_the_models_own_parameters(target, draft):
    """Weights that became other objects, or inference tensors, would never be updated again."""
    optimizer = optimizer_of(draft)
    acceptance(target, draft, RECORDS, "pard2-td", 6)
    assert [id(p) for p in draft.parameters()] == [id(p) for p in optimizer.parameters]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.is_leaf and not p.is_inference() for p in draft.parameters())
    before = copy.deepcopy(draft.state_dict())
    take_steps(target, draft, optimizer, 1)
    still = [name for name, tensor in draft.state_dict().items() if tensor.equal(before[name])]
    assert still == []


@pytest.mark.parametrize("method", ["pard2-td", "pard2-ti"])
def test_evaluating_again_sees_the_new_weights(target, draft, method):
    """Copies made at the first evaluation would be evaluated for the rest of the run."""
    first = acceptance(target, draft, RECORDS[:1], method, 30)
    take_steps(target, draft, optimizer_of(draft), 60)
    second = acceptance(target, draft, RECORDS[:1], method, 30)
    fresh = tiny_draft(target, [0, 2], draft_tokens=K, projection=0.0, mask_token=MASK_ID)
    fresh.load_state_dict(draft.state_dict())
    assert second == acceptance(target, fresh, RECORDS[:1], method, 30)
    assert second["acceptance_length"] > first["acceptance_length"] + 1


def test_every_weight_of_the_draft_is_read_anew(target, draft):
    """The same, weight by weight: a norm that is never read again costs too little acceptance to be noticed above."""
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
        acceptance(target, draft, RECORDS, "pard2-ti", 6)
    assert sizes[1] <= sizes[0] + 1024

    for kind in ("", "-float32"):
        names = sorted(file.name for file in (tmp_path / f"before{kind}").iterdir())
        assert filecmp.cmpfiles(tmp_path / f"before{kind}", tmp_path / f"after{kind}", names, shallow=False)[0] == names


def test_it_counts_as_stats_do_and_asks_what_users_ask(target):
    """By position: of the cycles that proposed so far. A share of all cycles would fall towards every answer's end, where less is proposed."""
    draft = tiny_draft(target, draft_tokens=K, mask_token=MASK_ID)  # all layers, so that some guesses are right

    def measured(turns: int) -> list[Stats]:
        prompts = [prompt_ids(target.tokenizer, record["messages"][:turns]) for record in RECORDS]
        return [completion.stats for completion in Engine(target, draft, "pard2-ti", K).generate(prompts, SamplingParams(max_tokens=7))]

    result = acceptance(target, draft, RECORDS, "pard2-ti", 7)
    stats = sum(measured(1), Stats())
    assert result["acceptance_length"] == stats.acceptance_length
    assert result["accepted_by_position"] == [round(rate, 4) for rate in stats.accepted_by_position]
    # Else neither definition nor prompts would matter.
    assert stats.proposed < K * stats.cycles
    assert stats.accepted_per_cycle != sum(measured(2), Stats()).accepted_per_cycle


def test_a_record_without_a_question_is_one_clear_line(target, draft):
    with pytest.raises(Pard2Error, match="data.evaluation: record 'x' has no user message"):
        acceptance(target, draft, [{"id": "x", "messages": [{"role": "system", "content": "y"}]}], "pard2-td", 3)
