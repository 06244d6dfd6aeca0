"""A packed sequence of documents: what of it is trained, with which weight and which teacher, and
that packing changes nothing."""

import pytest
import torch
from torch import Tensor
from train_runs import LAYERS, Prepared, packed_loss, prepare

from pard2.config import ObjectiveConfig
from pard2.data.corpus import Example
from pard2.models.target import Target
from tiny import tiny_draft, tiny_target

ALL = ObjectiveConfig(draft_tokens=4, retention=1.0, feature_drop=0.0)


def example(length: int, seed: int = 0, answers: tuple[range, ...] = ()) -> Example:
    tokens = torch.randint(0, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example.of(str(seed), tokens, [any(i in answer for answer in answers) if answers else i > 0 for i in range(length)])


def weights_by_slot(prepared: Prepared) -> dict[tuple[int, int, int], float]:
    """(document, anchor, depth) of every trained slot, and its weight."""
    packed = prepared.packed
    parts = (part[packed.trained].tolist() for part in (packed.layout.document, packed.layout.anchor, packed.layout.depth))
    return dict(zip(zip(*parts, strict=True), prepared.slots.weight.tolist(), strict=True))


@pytest.mark.parametrize("first", [1, 0])
def test_trained_slots_and_weights_are_those_of_a_loop(first):
    """Two answers in a document, and packed documents, of which one may be all answer: nothing predicts
    a prompt or a first token."""
    target = tiny_target()
    examples = [example(9, 1, (range(2, 5), range(6, 9))), example(5, 2, (range(first, 4),)), example(4, 3, (range(3, 4),))]
    expected = {}
    for document, e in enumerate(examples):
        ids = torch.tensor([e.token_ids.tolist()])
        p = target.model(ids).logits[0].softmax(-1)
        for a in range(len(e.token_ids)):
            weight = 1.0
            for d in range(4):
                if a + d + 1 >= len(e.token_ids) or not e.predicted[a + d + 1]:
                    break
                expected[document, a, d] = weight
                weight *= float(p[a + d, e.token_ids[a + d + 1]])
    got = weights_by_slot(prepare(target, examples, ALL))
    assert got.keys() == expected.keys()
    assert got == pytest.approx(expected, rel=1e-4)


def test_features_and_states_are_those_of_each_document_alone():
    """Right padding and neighbours must not show."""
    target = tiny_target()
    examples = [example(4, 1), example(9, 2), example(6, 3)]
    states = prepare(target, examples, ALL).states
    alone = [target.forward(torch.tensor([e.token_ids.tolist()]), layers=LAYERS) for e in examples]
    torch.testing.assert_close(states.features, torch.cat([o.features[0] for o in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states.last_state, torch.cat([o.last_state[0] for o in alone]), rtol=1e-4, atol=1e-4)


def gradients(draft, target: Target, sequences: list[Prepared]) -> tuple[float, dict[str, Tensor]]:
    draft.zero_grad()
    loss = weight = 0.0
    for prepared in sequences:
        out = packed_loss(draft, target, prepared, ALL)
        out.loss.backward()
        loss, weight = loss + float(out.loss.detach()), weight + float(out.weight)
    return loss / weight, {name: p.grad / weight for name, p in draft.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("feature_drop", [0.0, 1.0])
def test_documents_packed_together_train_as_sequences_of_their_own(feature_drop):
    """Also: a global batch is one sum over its weights, however it is split into sequences."""
    target = tiny_target()
    draft = tiny_draft(target, projection=0.5).requires_grad_(True)
    examples = [example(8, 1), example(5, 2, (range(2, 5),))]
    objective = ALL.model_copy(update={"feature_drop": feature_drop})
    packed = gradients(draft, target, [prepare(target, examples, objective)])
    apart = gradients(draft, target, [prepare(target, [e], objective) for e in examples])
    assert packed[0] == pytest.approx(apart[0], rel=1e-5)
    assert packed[1].keys() == apart[1].keys()
    for name, gradient in packed[1].items():
        torch.testing.assert_close(
            gradient, apart[1][name], rtol=1e-3, atol=1e-5 + 1e-4 * float(gradient.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_document_that_lost_its_features_is_target_independent():
    """No gradient for the projection, and the loss of a draft that has none, whatever shares the packed."""
    target = tiny_target()
    draft = tiny_draft(target).requires_grad_(True)
    prepared = prepare(target, [example(8)], ALL.model_copy(update={"feature_drop": 1.0}))
    loss, found = gradients(draft, target, [prepared])
    assert found["projection.weight"].abs().sum() == 0
    with torch.no_grad():
        draft.projection.weight.normal_(0, 5.0)
    assert gradients(draft, target, [prepared])[0] == loss


def test_documents_lose_their_features_each_by_itself():
    dropped = 0
    for seed in range(200):
        packed = prepare(None, [example(6, n) for n in range(4)], ALL.model_copy(update={"feature_drop": 0.25}), seed=seed).packed
        by_document = [packed.with_features[packed.layout.document == document] for document in range(4)]
        assert all(flags.all() or not flags.any() for flags in by_document)
        dropped += sum(not flags.any() for flags in by_document)
    assert 0.2 < dropped / 800 < 0.3  # 0.25 with a deviation of 0.015


def test_a_target_as_its_own_draft_has_no_divergence_at_depth_zero():
    """A teacher's state one position off would show here."""
    target = tiny_target()
    draft = tiny_draft(target, projection=0.0)
    prepared = prepare(target, [example(9), example(7, 2)], ObjectiveConfig(draft_tokens=1))
    out = packed_loss(draft, target, prepared, ALL)
    assert abs(float(out.kl / out.weight)) < 1e-5 < 0.1 < float(out.ce / out.weight)


def test_dropping_keeps_the_first_depths():
    """COD thins masks, never real tokens."""
    target = tiny_target()
    e = example(40)
    whole, thinned = (prepare(target, [e], objective) for objective in (ALL, ObjectiveConfig(draft_tokens=4, retention=0.5, min_retention=0.1)))
    assert sum(d == 0 for _, _, d in weights_by_slot(thinned)) == sum(d == 0 for _, _, d in weights_by_slot(whole))
    assert len(thinned.packed.layout) < 0.6 * len(whole.packed.layout)
    assert weights_by_slot(thinned).items() <= weights_by_slot(whole).items()


def test_a_chain_across_two_turns_is_weighed_by_the_template_between_them():
    """The block's tokens before the predicted one all count, though nobody learns to say
    those between two answers."""
    target = tiny_target()
    e = example(12, 4, (range(3, 5), range(6, 9)))
    weights = weights_by_slot(prepare(target, [e], ALL.model_copy(update={"anchors": "all"})))
    logprobs = target.model(torch.tensor([e.token_ids.tolist()])).logits[0].log_softmax(-1)
    p = [1.0] + [float(logprobs[t - 1, e.token_ids[t]].exp()) for t in range(1, 12)]
    crossing = [(a, d) for _, a, d in weights if a < 5 <= a + d]
    assert len(crossing) > 3
    for a, d in crossing:
        assert weights[0, a, d] == pytest.approx(float(torch.tensor(p[a + 1 : a + d + 1]).prod()), rel=1e-4)


@pytest.mark.parametrize("anchors", ["response", "all"])
def test_chains_begin_where_anchors_says(anchors):
    e = example(12, 5, (range(6, 12),))
    packed = prepare(None, [e], ALL.model_copy(update={"anchors": anchors})).packed
    anchor, position = packed.layout.anchor[packed.trained], packed.layout.position[packed.trained]
    assert all(e.predicted[t + 1] for t in position.tolist())
    assert int(anchor.min()) == {"response": 5, "all": 2}[anchors]  # all: three masks reach from 2 to the slot that predicts 6


def test_the_correction_counts_what_was_dropped():
    """Each kept slot stands for those of its depth: their number is what it was without dropping."""
    e = example(60)
    whole = prepare(None, [e], ALL).packed
    objective = ObjectiveConfig(draft_tokens=4, retention=0.5, feature_drop=0.0, cod_correction=True)
    thinned = prepare(None, [e], objective).packed
    for depth in range(4):
        kept = thinned.layout.depth[thinned.trained] == depth
        assert float(thinned.correction[kept].sum()) == pytest.approx(int((whole.layout.depth[whole.trained] == depth).sum()), rel=0.05)
