"""Siblings of one tokenizer whose vocabularies are padded to different sizes, as Qwen2.5's of 7B and 0.5B."""

import pytest
import torch
from train_runs import CONVERSATIONS, packed_loss, prepare, write_records

from chat_tokenizer import END_ID, MASK_ID, VOCABULARY, byte_tokenizer
from pard2 import Engine, SamplingParams
from pard2.checkpoints.pruning import as_parallel_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.config import ObjectiveConfig
from pard2.data.chat import prompt_ids
from pard2.data.corpus import Example
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.objective.loss import Objective, weighted_loss
from pard2.train.initial import meta_pair
from pard2.train.loop import train
from pard2.train.teacher import Teacher
from tiny import MASK, tiny_lm_draft, tiny_model, tiny_target

OBJECTIVE = ObjectiveConfig(draft_tokens=3, retention=1.0, feature_drop=0.0)
KNOWN = 61
# Of its answer the fourth token, 65, is one that a draft of 61 tokens lacks.
LACKING = Example.of("0", [2, 9, 4, 8, 20, 65, 30, 16, 44], [False, False, True, True, True, True, True, True, True])
COMMON = Example.of("0", [2, 9, 4, 8, 20, 7, 30, 16, 44], LACKING.predicted)


@pytest.mark.parametrize(("of_target", "of_draft", "conversation"), [(70, KNOWN, LACKING), (70, KNOWN, COMMON), (KNOWN, 70, COMMON)])
@pytest.mark.parametrize("kernels", [True, False])
def test_weights_are_of_all_the_targets_tokens_and_the_loss_of_the_common_ones(of_target, of_draft, conversation, kernels, monkeypatch):
    """Padding rows of random models are as likely as any other: a softmax over the wrong ones shows."""
    if not kernels:
        monkeypatch.setattr("pard2.objective.chunked_loss.has_kernels", lambda _states: False)
    target = tiny_target(vocab=of_target)
    draft = as_parallel_draft(tiny_lm_draft(vocab=of_draft), target, MASK, 3, (-1, -2)).requires_grad_(True)
    with torch.no_grad():
        torch.manual_seed(1)
        draft.projection.weight.normal_(std=0.5)
    teacher = Teacher.of(target, draft)
    prepared = prepare(target, [conversation], OBJECTIVE, teacher=teacher)

    ids = torch.tensor(conversation.token_ids.tolist())
    logits = target.model(ids[None]).logits[0]
    p = logits.softmax(-1)
    expected = {}
    for anchor in range(1, len(ids) - 1):
        weight = 1.0
        for index in range(anchor + 1, min(anchor + 4, len(ids))):
            if ids[index] < of_draft:
                expected[anchor, index - anchor - 1] = weight
            weight *= float(p[index - 1, ids[index]]) if ids[index] < of_draft else 0.0
    packed, slots = prepared.packed, prepared.slots
    trained = list(zip(packed.layout.anchor[packed.trained].tolist(), packed.layout.depth[packed.trained].tolist(), strict=True))
    assert dict(zip(trained, slots.weight.tolist(), strict=True)) == pytest.approx(expected, rel=1e-4)
    assert slots.label.tolist() == [int(ids[a + d + 1]) for a, d in trained]

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        draft.zero_grad()
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in draft.named_parameters() if parameter.grad is not None}

    out = packed_loss(draft, target, prepared, OBJECTIVE)
    ours = gradients(out.loss)
    said = torch.stack([proposed(draft, prepared.states.features, ids.clamp(max=of_draft - 1), a, d) for a, d in trained])
    readable = weighted_loss(said[:, :KNOWN], logits[:, :KNOWN], slots, Objective(draft_tokens=3))
    assert float(out.loss.detach()) == pytest.approx(float(readable.loss.detach()), rel=1e-4)
    assert out.overlap.tolist() == pytest.approx(readable.overlap.tolist(), rel=1e-4)
    for name, gradient in gradients(readable.loss).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


def proposed(draft: Draft, features: torch.Tensor, ids: torch.Tensor, anchor: int, depth: int) -> torch.Tensor:
    """Logits at a slot of a plain causal pass over [real tokens, masks], as in decoding."""
    tokens = torch.cat([ids[: anchor + 1], ids.new_full((depth,), MASK)])
    shifted = torch.cat([torch.zeros_like(features[:1]), features])[: anchor + 1]
    return draft(tokens[None], torch.cat([shifted, shifted[-1:].expand(depth, -1)])[None], num_logits=1)[0, -1]


def test_equal_sizes_take_the_targets_own_head():
    """No column is copied for the common case."""
    target = tiny_target()
    teacher = Teacher.of(target, as_parallel_draft(tiny_lm_draft(), target, MASK, 3, (-1,)))
    assert teacher.head == target.head and teacher.columns is None and teacher.whole is None


@pytest.mark.parametrize(("of_target", "of_draft"), [(320, VOCABULARY), (VOCABULARY, 320)])
def test_a_sibling_of_another_padding_trains_decodes_and_is_accepted(of_target, of_draft, make_config, quiet, tmp_path):
    model = tiny_model(layers=3, vocab=of_target, context=96, initializer_range=0.2)
    model.generation_config.eos_token_id = END_ID
    tokenizer = byte_tokenizer()
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz")))
    with torch.no_grad():  # padding is unlikely, as in a trained model, and what it says is text
        model.lm_head.weight.mul_(torch.zeros(of_target, 1).index_fill(0, letters, 1))
    target = Target(model, tokenizer, "target")
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question, _ in CONVERSATIONS]
    greedy = [out.token_ids for out in Engine(target).generate(prompts, SamplingParams(max_tokens=12))]
    for part, weights in (("target", model), ("lm", tiny_model(layers=1, vocab=of_draft, context=96, seed=5))):
        weights.save_pretrained(tmp_path / part)
        tokenizer.save_pretrained(tmp_path / part)
    answers = [(question, tokenizer.decode(ids)) for (question, _), ids in zip(CONVERSATIONS, greedy, strict=True)]
    config = make_config(
        target={"name": str(tmp_path / "target")},
        draft={"layers": None, "path": str(tmp_path / "lm")},
        data={"train": [str(write_records(tmp_path / "answers.jsonl", answers))], "max_length": 90},
        optimizer={"lr": 1e-2},
        loop={"steps": 40, "save_every": 100},
    )
    meta_pair(config)
    untrained = as_parallel_draft(load_draft(str(tmp_path / "lm"), target, torch.float32, weight_format="plain"), target, MASK_ID, 4, (-1, -2))
    save_draft(untrained, tmp_path / "untrained")
    accepted = []
    for directory in (tmp_path / "untrained", train(config, quiet)):
        draft = load_draft(str(directory), target, torch.float32, weight_format="plain")
        assert draft.vocab_size == of_draft and draft.spec.mask_token == MASK_ID
        outputs = Engine(target, draft, "pard2-td", 4).generate(prompts, SamplingParams(max_tokens=12))
        assert [out.token_ids for out in outputs] == greedy
        accepted.append(sum(out.stats.accepted for out in outputs))
    assert accepted[1] > accepted[0] + 4, accepted
