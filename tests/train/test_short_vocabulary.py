"""Training a draft that can propose a part of the vocabulary: the target is taken as
if it had no other tokens."""

import pytest
import torch
from train_runs import packed_loss, prepare

from pard2.checkpoints.loading import load_target
from pard2.checkpoints.pruning import cut_draft
from pard2.checkpoints.read import load_draft
from pard2.config import ObjectiveConfig
from pard2.data.corpus import Example, ExamplesBuilder
from pard2.errors import Pard2Error
from pard2.objective.loss import Objective, weighted_loss
from pard2.train.initial import answer_vocabulary, meta_pair
from pard2.train.loop import train
from pard2.train.teacher import Teacher
from tiny import MASK, tiny_target

CHOSEN = torch.arange(0, 60, 2)
OBJECTIVE = ObjectiveConfig(draft_tokens=3, retention=1.0, feature_drop=0.0)
# The fourth token of the answer, 7, cannot be proposed.
CONVERSATION = Example.of("0", [2, 9, 4, 8, 20, 7, 30, 16, 44], [False, False, True, True, True, True, True, True, True])


def pair():
    target = tiny_target()
    draft = cut_draft(target, [1], MASK, 3, (-1, -2), shared_vocabulary=True, vocabulary=CHOSEN)
    torch.manual_seed(1)
    with torch.no_grad():
        draft.projection.weight.normal_(std=0.5)
    return target, draft.requires_grad_(True)


def test_slots_weights_loss_and_gradients_are_those_of_the_formula_over_the_chosen_tokens():
    target, draft = pair()
    prepared = prepare(target, [CONVERSATION], OBJECTIVE, teacher=Teacher.of(target, draft))
    ids = torch.tensor([CONVERSATION.token_ids.tolist()])
    teacher = target.model(ids).logits[0][:, CHOSEN]
    p = teacher.softmax(-1)
    expected = {}
    for a in range(1, 8):
        weight = 1.0
        for d in range(3):
            if a + d + 1 >= ids.shape[1]:
                break
            token = int(ids[0, a + d + 1])
            if token % 2 == 0:
                expected[a, d] = weight
            weight *= float(p[a + d, token // 2]) if token % 2 == 0 else 0.0
    packed, slots = prepared.packed, prepared.slots
    trained = list(zip(packed.layout.anchor[packed.trained].tolist(), packed.layout.depth[packed.trained].tolist(), strict=True))
    assert dict(zip(trained, slots.weight.tolist(), strict=True)) == pytest.approx(expected, rel=1e-4)
    assert CHOSEN[slots.label].tolist() == [int(ids[0, a + d + 1]) for a, d in trained]
    # Seven anchors, the last with no token two positions on; what cannot be proposed
    # counts as a guess that failed.
    assert packed.answered.tolist() == [7, 6, 5] and len(packed.trained) == 7 + 6 + 5 - 3

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        draft.zero_grad()
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in draft.named_parameters() if parameter.grad is not None}

    out = packed_loss(draft, target, prepared, OBJECTIVE)
    ours = gradients(out.loss)
    states = torch.stack([draft_state(draft, prepared, ids, a, d) for a, d in trained])
    readable = weighted_loss(states @ target.model.get_output_embeddings().weight[CHOSEN].T, teacher, slots, Objective(draft_tokens=3))
    assert float(out.loss.detach()) == pytest.approx(float(readable.loss.detach()), rel=1e-4)
    for name, gradient in gradients(readable.loss).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


def draft_state(draft, prepared, ids: torch.Tensor, anchor: int, depth: int) -> torch.Tensor:
    """The state at a slot from a plain causal pass over [real tokens, masks], as in decoding."""
    tokens = torch.cat([ids[0, : anchor + 1], ids.new_full((depth,), MASK)])
    features = prepared.states.features
    shifted = torch.cat([torch.zeros_like(features[:1]), features])[: anchor + 1]
    features = torch.cat([shifted, shifted[-1:].expand(depth, -1)])
    return draft.lm.base_model(inputs_embeds=draft.embed(tokens[None], features[None])).last_hidden_state[0, -1]


def test_the_vocabulary_is_that_of_the_answers_then_the_lowest_ids():
    builder = ExamplesBuilder()
    builder.add(Example.of("a", [5, 7, 7, 9], [False, True, True, True]), "data")
    builder.add(Example.of("b", [5, 9, 9, 3], [False, True, True, False]), "data")
    examples = builder.build()
    assert answer_vocabulary(examples, 2, 12).tolist() == [7, 9]
    assert answer_vocabulary(examples, 4, 12).tolist() == [0, 1, 7, 9]  # 5 and 3 are in prompts alone
    assert answer_vocabulary(examples, 3, 12, kept=torch.tensor([3, 11])).tolist() == [3, 9, 11]
    with pytest.raises(Pard2Error, match=r"draft.vocabulary_size=13: the target has 12 tokens"):
        answer_vocabulary(examples, 13, 12)


def test_a_run_trains_saves_and_goes_on_with_its_vocabulary(make_config, quiet, tmp_path):
    draft = {"share_vocabulary": True, "standardise_features": True, "vocabulary_size": 24}
    config = make_config(draft=draft, loop={"steps": 8})
    directory = train(config, quiet)
    target = load_target(config.target.name, "float32", "cpu", weight_format="plain")
    first = load_draft(str(directory), target, torch.float32)
    assert len(first.short_head.token_ids) == 24
    more = {"layers": None, "path": str(directory), **draft}
    again = make_config(draft=more, loop={"output": str(tmp_path / "more"), "steps": 2})
    second = load_draft(str(train(again, quiet)), target, torch.float32)
    assert second.short_head.token_ids.equal(first.short_head.token_ids)


def test_another_size_than_that_of_the_draft_to_start_from(make_config, quiet, tmp_path):
    config = make_config(draft={"share_vocabulary": True, "vocabulary_size": 24}, loop={"steps": 1})
    more = {"layers": None, "path": str(train(config, quiet)), "share_vocabulary": True, "vocabulary_size": 20}
    with pytest.raises(Pard2Error, match=r"has draft.vocabulary_size = 24; leave that field out"):
        train(make_config(draft=more, loop={"output": str(tmp_path / "more")}), quiet)


def test_a_larger_size_than_that_of_the_draft_to_start_from_adds_tokens(make_config, quiet, tmp_path):
    config = make_config(draft={"share_vocabulary": True, "vocabulary_size": 24}, loop={"steps": 1})
    first = train(config, quiet)
    draft = {"layers": None, "path": str(first), "share_vocabulary": True, "vocabulary_size": 40}
    more = make_config(draft=draft, loop={"output": str(tmp_path / "more"), "steps": 1})
    second = train(more, quiet)
    target = load_target(config.target.name, "float32", "cpu", weight_format="plain")
    before, after = (load_draft(str(directory), target, torch.float32).short_head for directory in (first, second))
    assert len(after.token_ids) == 40 and set(before.token_ids.tolist()) < set(after.token_ids.tolist())
    assert after.weight.equal(target.model.get_output_embeddings().weight[after.token_ids])
    meta_pair(more)  # a plan knows the size without weights
