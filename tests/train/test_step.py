"""A row of documents: what of it is trained, with which weight and which teacher, and that packing changes nothing."""

import pytest
import torch
from torch import Tensor

from pard2.config import ObjectiveConfig
from pard2.data.chat import Example
from pard2.models.target import Target
from pard2.train.step import Row, prepare_row, row_loss
from tiny import tiny_draft, tiny_target

ALL = ObjectiveConfig(draft_tokens=4, retention=1.0)


def example(length: int, seed: int = 0, answers: tuple[range, ...] = ()) -> Example:
    tokens = torch.randint(0, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(str(seed), tokens, [any(i in answer for answer in answers) if answers else i > 0 for i in range(length)])


def captured() -> Target:
    target = tiny_target()
    target.capture((-1, -2))
    return target


def prepare(target: Target, examples: list[Example], objective: ObjectiveConfig = ALL, use_features: bool = True) -> Row:
    return prepare_row(target, examples, objective, torch.Generator().manual_seed(0), use_features)


def trained_slots(row: Row) -> dict[tuple[int, int, int], float]:
    """(document, anchor, depth) of every trained slot, and its weight."""
    parts = (part[row.trained].tolist() for part in (row.layout.document, row.layout.anchor, row.layout.depth))
    return dict(zip(zip(*parts, strict=True), row.weights.tolist(), strict=True))


@pytest.mark.parametrize("first", [1, 0])
def test_trained_slots_and_weights_are_those_of_a_loop(first):
    """Two answers in a document, and packed documents, of which one may be all answer: nothing predicts a prompt or a first token."""
    target = captured()
    examples = [example(9, 1, (range(2, 5), range(6, 9))), example(5, 2, (range(first, 4),)), example(4, 3, (range(3, 4),))]
    expected = {}
    for document, e in enumerate(examples):
        ids = torch.tensor([e.token_ids])
        p = target.model(ids).logits[0].softmax(-1)
        for a in range(len(e.token_ids)):
            weight = 1.0
            for d in range(4):
                if a + d + 1 >= len(e.token_ids) or not e.predicted[a + d + 1]:
                    break
                expected[document, a, d] = weight
                weight *= float(p[a + d, e.token_ids[a + d + 1]])
    got = trained_slots(prepare(target, examples))
    assert got.keys() == expected.keys()
    assert got == pytest.approx(expected, rel=1e-4)


def test_features_and_states_are_those_of_each_document_alone():
    """Right padding and neighbours must not show."""
    target = captured()
    examples = [example(4, 1), example(9, 2), example(6, 3)]
    row = prepare(target, examples)
    alone = [target.forward(torch.tensor([e.token_ids])) for e in examples]
    torch.testing.assert_close(row.features, torch.cat([o.features[0] for o in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(row.teacher_states, torch.cat([o.last_state[0] for o in alone]), rtol=1e-4, atol=1e-4)


def gradients(draft, target: Target, rows: list[Row]) -> tuple[float, dict[str, Tensor]]:
    draft.zero_grad()
    total = sum(row.weights.sum() for row in rows)
    loss = 0.0
    for row in rows:
        out = row_loss(draft, target, row, total, ALL)
        out.loss.backward()
        loss += float(out.loss.detach())
    return loss, {name: p.grad.clone() for name, p in draft.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_features", [True, False])
def test_documents_packed_in_a_row_train_as_rows_of_their_own(use_features):
    """Also: a global batch is one sum over its weights, however it is split into rows."""
    target = captured()
    draft = tiny_draft(target, projection=0.5).requires_grad_(True)
    examples = [example(8, 1), example(5, 2, (range(2, 5),))]
    packed = gradients(draft, target, [prepare(target, examples, use_features=use_features)])
    apart = gradients(draft, target, [prepare(target, [e], use_features=use_features) for e in examples])
    assert packed[0] == pytest.approx(apart[0], rel=1e-5)
    assert packed[1].keys() == apart[1].keys()
    for name, gradient in packed[1].items():
        torch.testing.assert_close(
            gradient, apart[1][name], rtol=1e-3, atol=1e-5 + 1e-4 * float(gradient.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_row_without_features_is_target_independent():
    """No gradient for the projection, and the loss of a draft that has none."""
    target = captured()
    draft = tiny_draft(target).requires_grad_(True)
    row = prepare(target, [example(8)], use_features=False)
    loss, with_projection = gradients(draft, target, [row])
    assert not any(name.startswith("projection") for name in with_projection)
    draft.projection = None
    assert gradients(draft, target, [row])[0] == loss


def test_a_target_as_its_own_draft_has_no_divergence_at_depth_zero():
    """A teacher row one place off would show here."""
    target = captured()
    draft = tiny_draft(target, projection=0.0)
    row = prepare(target, [example(9), example(7, 2)], ObjectiveConfig(draft_tokens=1))
    out = row_loss(draft, target, row, row.weights.sum(), ALL)
    assert abs(float(out.kl)) < 1e-5 < 0.1 < float(out.ce)


def test_dropping_keeps_the_first_depths():
    """COD thins masks, never real tokens."""
    target = captured()
    e = example(40)
    whole, thinned = (prepare(target, [e], objective) for objective in (ALL, ObjectiveConfig(draft_tokens=4, retention=0.5, min_retention=0.1)))
    assert sum(d == 0 for _, _, d in trained_slots(thinned)) == sum(d == 0 for _, _, d in trained_slots(whole))
    assert len(thinned.layout) < 0.6 * len(whole.layout)
    assert trained_slots(thinned).items() <= trained_slots(whole).items()
