"""The readable loss against a loop over slots, and the chunked loss against the readable one: values and gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pard2.objective.loss import chunked_loss, weighted_loss


@dataclass(frozen=True)
class Case:
    """P slots, T teacher rows, V tokens. rows: [P], the teacher row of each slot, repeated and unsorted."""

    states: Tensor
    head: Tensor
    teacher_states: Tensor
    teacher_head: Callable[[Tensor], Tensor]
    rows: Tensor
    labels: Tensor
    weights: Tensor


def random_case(slots: int = 11, teachers: int = 5, vocabulary: int = 17, seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
    g = torch.Generator().manual_seed(seed)
    teacher_table = torch.randn(vocabulary, 6, generator=g).to(dtype)
    return Case(
        states=torch.randn(slots, 4, generator=g).to(dtype).requires_grad_(),
        head=torch.randn(vocabulary, 4, generator=g).to(dtype).requires_grad_(),
        teacher_states=torch.randn(teachers, 6, generator=g).to(dtype),
        teacher_head=lambda states: states @ teacher_table.T,
        rows=torch.randint(0, teachers, (slots,), generator=g),
        labels=torch.randint(0, vocabulary, (slots,), generator=g),
        weights=torch.rand(slots, generator=g).to(dtype),
    )


def readable(case: Case, total: Tensor | float, *alphas: float):
    teacher = case.teacher_head(case.teacher_states[case.rows])
    return weighted_loss(case.states @ case.head.T, teacher, case.labels, case.weights, total, *alphas)


def chunked(case: Case, total: Tensor | float, chunk: int, *alphas: float):
    return chunked_loss(
        case.states,
        case.head,
        case.teacher_states,
        case.teacher_head,
        case.rows,
        case.labels,
        case.weights,
        total,
        *(alphas or (0.1, 1.0)),
        chunk=chunk,
    )


def test_readable_loss_is_the_sum_over_slots_and_tokens():
    case = random_case()
    total = float(case.weights.sum())
    logits, teacher = (case.states @ case.head.T).tolist(), case.teacher_head(case.teacher_states[case.rows]).tolist()
    ce = kl = 0.0
    for s in range(len(logits)):
        z_q, z_p = math.log(sum(map(math.exp, logits[s]))), math.log(sum(map(math.exp, teacher[s])))
        ce -= float(case.weights[s]) * (logits[s][case.labels[s]] - z_q) / total
        for q, p in zip(logits[s], teacher[s], strict=True):
            kl += float(case.weights[s]) * math.exp(p - z_p) * ((p - z_p) - (q - z_q)) / total
    out = readable(case, total, 0.3, 0.7)
    assert math.isclose(float(out.ce), ce, rel_tol=1e-12)
    assert math.isclose(float(out.kl), kl, rel_tol=1e-12)
    assert math.isclose(float(out.loss.detach()), 0.3 * ce + 0.7 * kl, rel_tol=1e-12)
    assert out.correct.tolist() == [row.index(max(row)) == label for row, label in zip(logits, case.labels.tolist(), strict=True)]


def test_gradients_of_the_readable_loss_are_numerically_right():
    case = random_case(slots=4, teachers=2, vocabulary=5)
    torch.autograd.gradcheck(lambda states, head: readable(Case(states, head, *list(vars(case).values())[2:]), 2.0).loss, (case.states, case.head))


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("alphas", [(0.1, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_chunked_loss_is_the_readable_one(chunk, alphas):
    """Among what it catches: a slot that gets its neighbour's teacher row, and a last chunk that is left out."""
    case = random_case()
    plain, fast = readable(case, 3.5, *alphas), chunked(case, 3.5, chunk, *alphas)
    for name in ("loss", "ce", "kl"):
        torch.testing.assert_close(getattr(fast, name), getattr(plain, name), rtol=1e-12, atol=1e-12)
    assert fast.correct.equal(plain.correct)
    for mine, theirs in zip(
        torch.autograd.grad(fast.loss, (case.states, case.head)), torch.autograd.grad(plain.loss, (case.states, case.head)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_chunked_loss_are_numerically_right():
    case = random_case(slots=5, teachers=2, vocabulary=5)
    torch.autograd.gradcheck(lambda states, head: chunked(Case(states, head, *list(vars(case).values())[2:]), 2.0, 2).loss, (case.states, case.head))


def test_gradient_is_scaled_by_what_comes_after():
    """The gradient is made in the forward pass; a backward that ignored its argument would break gradient scaling."""
    case = random_case()
    (one,) = torch.autograd.grad(chunked(case, 1.0, 4).loss, case.states)
    (three,) = torch.autograd.grad(3 * chunked(case, 1.0, 4).loss, case.states)
    torch.testing.assert_close(three, 3 * one)


@pytest.mark.parametrize("frozen", ["states", "head"])
def test_a_frozen_side_gets_no_gradient(frozen):
    case = random_case()
    getattr(case, frozen).requires_grad_(False)
    chunked(case, 1.0, 4).loss.backward()
    other = {"states": case.head, "head": case.states}[frozen]
    assert getattr(case, frozen).grad is None and other.grad.abs().sum() > 0


def test_total_may_be_that_of_a_larger_batch():
    """Halves of a batch, each divided by the whole's weight, add up to the whole, though their weights differ."""
    case = random_case(slots=12)
    total = case.weights.sum()
    halves = 0.0
    for part in (slice(0, 3), slice(3, 12)):
        some = Case(case.states[part], case.head, case.teacher_states, case.teacher_head, case.rows[part], case.labels[part], case.weights[part])
        halves += chunked(some, total, 4).loss
    torch.testing.assert_close(halves, chunked(case, total, 4).loss)


def test_equal_distributions_have_no_divergence():
    case = random_case()
    same = Case(case.states, case.head, case.states.detach(), lambda s: s @ case.head.detach().T, torch.arange(11), case.labels, case.weights)
    assert abs(float(chunked(same, 1.0, 3).kl)) < 1e-12


def test_large_logits_stay_finite_in_float32():
    case = random_case(dtype=torch.float32)
    with torch.no_grad():
        case.states.mul_(300)
    out = chunked(case, 1.0, 4)
    out.loss.backward()
    assert torch.isfinite(out.loss) and torch.isfinite(case.states.grad).all() and torch.isfinite(case.head.grad).all()


def test_bfloat16_states_are_summed_in_float32():
    case = random_case(slots=200, dtype=torch.bfloat16)
    exact = random_case(slots=200)
    torch.testing.assert_close(chunked(case, 1.0, 7).loss.double(), chunked(exact, 1.0, 7).loss, rtol=0.01, atol=0)
    assert chunked(case, 1.0, 7).loss.dtype == torch.float32
