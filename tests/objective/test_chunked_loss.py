"""The chunked loss against the readable one: values, gradients, and what it never holds."""

from dataclasses import replace

import pytest
import torch
from loss_cases import OBJECTIVES, Case, random_case, readable
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pard2.errors import Pard2Error
from pard2.objective import chunked_loss as chunked_loss_module
from pard2.objective import vocabulary
from pard2.objective.chunked_loss import chunked_loss, has_kernels
from pard2.objective.chunks import plan_chunks
from pard2.objective.loss import LossOutput, Objective, TrainedSlots

needs_kernels = pytest.mark.skipif(not has_kernels(torch.zeros(1)), reason="numba is not installed")


def chunked(case: Case, objective: Objective, chunk: int = 4, compiled: bool = True) -> LossOutput:
    """compiled: by the CPU's kernels where they can run; False for the tensor operations instead."""
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(chunked_loss_module, "has_kernels", lambda states: False)
        return chunked_loss(case.states, case.head, case.teacher_states, case.teacher_head, case.slots, objective, case.bias, chunk)


def compare(case: Case, exact: Case, objective: Objective, chunk: int, compiled: bool, **tolerance: float) -> None:
    """Values and gradients of a case's chunked loss against the readable loss of the same case in float64."""
    fast, plain = chunked(case, objective, chunk, compiled), readable(exact, objective)
    for name in ("loss", "weight", "ce", "kl", "overlap"):
        torch.testing.assert_close(getattr(fast, name).double(), getattr(plain, name), **tolerance, msg=lambda m, name=name: f"{name}: {m}")
    assert fast.correct.equal(plain.correct)
    grads = (torch.autograd.grad(out.loss, c.leaves) for out, c in ((fast, case), (plain, exact)))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine.double(), theirs, **tolerance)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_chunked_loss_is_the_readable_one(objective, chunk):
    """It catches a neighbour's teacher row, a chain torn by a chunk, and a last chunk left out."""
    case = random_case()
    compare(case, case, objective, chunk, True, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weighting", ["fixed", "d-pace"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_a_teacher_the_rest_of_the_loss_is_the_same(weighting, dtype):
    """Plain cross-entropy asks nobody: no row of the target is made, and nothing of it is compared."""
    case, exact = (random_case(vocabulary=77, dtype=kind) for kind in (dtype, torch.float64))
    objective = Objective(weighting=weighting, ce_alpha=1.0, kd_alpha=0.0)

    def asked(states: Tensor) -> Tensor:
        raise AssertionError("the target was asked")

    alone, plain = chunked_loss(case.states, case.head, None, asked, case.slots, objective, case.bias, 4), readable(exact, objective)
    for name in ("loss", "weight", "ce"):
        torch.testing.assert_close(getattr(alone, name).double(), getattr(plain, name), rtol=2e-5, atol=2e-5)
    assert alone.correct.equal(plain.correct) and alone.kl == 0 and not alone.overlap.any()
    grads = (torch.autograd.grad(out.loss, c.leaves) for out, c in ((alone, case), (plain, exact)))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-5, atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_kernels_compute_the_readable_loss(objective, chunk):
    """A vocabulary of more than one stretch of lanes and a remainder, some logits far from the others."""
    case, exact = (random_case(vocabulary=77, dtype=dtype) for dtype in (torch.float32, torch.float64))
    for c in (case, exact):
        with torch.no_grad():
            c.bias[:3] += torch.tensor([9.0, -200.0, 4.0])
    compare(case, exact, objective, chunk, True, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_tensor_operations_serve_float32_where_numba_is_missing(objective):
    compare(random_case(dtype=torch.float32), random_case(), objective, 5, False, rtol=2e-5, atol=2e-5)


def test_gradient_is_scaled_by_what_comes_after():
    """The forward pass makes the gradient; a backward that ignored its argument would break scaling."""
    case = random_case()
    one, three = (torch.autograd.grad(scale * chunked(case, Objective()).loss, case.leaves) for scale in (1, 3))
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(b, 3 * a)


def test_a_second_backward_pass_is_refused():
    """It would scale the gradients a second time."""
    loss = chunked(random_case(), Objective()).loss * 2
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["d-pace", "overlap", "tf-eal"])
def test_no_choice_of_chunks_changes_a_weight(name, compiled):
    """Weights are of whole chains; a chunk that tore one would see a shorter one."""
    case = random_case(dtype=torch.float32)
    outs = [chunked(case, OBJECTIVES[name], chunk, compiled) for chunk in (1, 3, 100)]
    for out in outs[1:]:
        torch.testing.assert_close(out.weight, outs[0].weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("objective", [Objective(tf_eal_alpha=0.0, draft_tokens=3), Objective(d_pace_floor=0.9)], ids=["tf-eal", "d-pace"])
def test_what_is_off_leaves_no_trace(objective, compiled):
    case = random_case(dtype=torch.float32)
    plain, other = chunked(case, Objective(), compiled=compiled), chunked(case, objective, compiled=compiled)
    assert all(getattr(plain, name).equal(getattr(other, name)) for name in vars(plain))
    grads = [torch.autograd.grad(out.loss, case.leaves) for out in (plain, other)]
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("frozen", [("states",), ("head", "bias"), ("states", "head", "bias")])
def test_what_is_frozen_gets_no_gradient(frozen):
    case = random_case()
    for name in frozen:
        getattr(case, name).requires_grad_(False)
    out = chunked(case, Objective())
    torch.testing.assert_close(out.loss.detach(), readable(case, Objective()).loss.detach())
    if out.loss.requires_grad:
        out.loss.backward()
    for name in ("states", "head", "bias"):
        assert (getattr(case, name).grad is None) == (name in frozen)


class _Counting:
    """A teacher's head that records the states that it is asked for."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.asked: list[Tensor] = []

    def __call__(self, states: Tensor) -> Tensor:
        self.asked.append(states)
        return self.case.teacher_head(states)


def row_of_chains(tokens: int, k: int, start: int = 0) -> list[tuple[int, int, int]]:
    """(chain, depth, teacher row) of the slots of one document whose chains are cut at random depths."""
    depths = torch.randint(1, k + 1, (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()
    return [(start + a, d, start + a + d) for a in range(tokens) for d in range(min(depths[a], tokens - a))]


@pytest.mark.parametrize("chunk", [1, 7, 40, 10_000])
def test_the_teacher_is_asked_for_each_row_once(chunk):
    """Two documents, every teacher row shared by many depths and by chunks side by side."""
    case = random_case(row_of_chains(30, 6) + row_of_chains(25, 6, start=30))
    head = _Counting(case)
    chunked_loss(case.states, case.head, case.teacher_states, head, case.slots, Objective(), chunk=chunk)
    asked = torch.cat(head.asked)
    assert len(asked) == len(asked.unique(dim=0)) == len(case.slots.teacher_row.unique())


def test_chunks_hold_whole_chains_and_few_rows_of_the_teacher():
    k, size = 8, 32
    places = row_of_chains(200, k)
    chain, depth, row = torch.tensor(places)[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))].T
    chunks, rows = plan_chunks(TrainedSlots(chain, depth, row, row, torch.ones(len(row))), size)
    assert torch.cat([c.slots for c in chunks]).sort().values.tolist() == list(range(len(places)))
    seen: set[int] = set()
    for part in chunks:
        chains = set(chain[part.slots].tolist())
        assert not chains & seen and len(part.slots) <= size
        seen |= chains
    assert rows <= max(len(row[c.slots].unique()) for c in chunks) + k - 1


def test_a_chain_longer_than_a_chunk_stays_whole():
    case = random_case([(0, d, d) for d in range(6)] + [(1, d, 1 + d) for d in range(2)])
    chunks, _ = plan_chunks(case.slots, 3)
    assert [len(part.slots) for part in chunks] == [6, 2]


class _LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest tensor that any operation makes has."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("tokens, k", [(40, 4), (40, 12), (300, 12)])
def test_no_tensor_grows_with_slots_or_depths_times_vocabulary(tokens, k, compiled):
    """A full [P, V], of the draft or of the teacher, is what makes others run out of memory."""
    vocabulary, chunk = 1000, 24
    case = random_case(row_of_chains(tokens, k), vocabulary, dtype=torch.float32)
    with _LargestTensor() as made:
        chunked(case, OBJECTIVES["overlap and tf-eal"], chunk, compiled).loss.backward()
    assert len(case.slots) > 2 * (chunk + k)
    assert made.largest <= (chunk + k) * vocabulary


@pytest.mark.parametrize("rows", [16, 18])
def test_a_target_with_another_number_of_tokens_is_refused(rows):
    """Models of one family may be padded to different sizes; a kernel would write past its rows' end."""
    case = random_case(dtype=torch.float32)
    with pytest.raises(Pard2Error, match=f"for {rows} tokens, the draft for 17"):
        chunked(replace(case, teacher_table=torch.zeros(rows, 6)), Objective())


def test_large_logits_stay_finite():
    for compiled in (True, False):
        case = random_case(dtype=torch.float32)
        with torch.no_grad():
            case.states.mul_(300)
        out = chunked(case, OBJECTIVES["overlap and tf-eal"], compiled=compiled)
        assert torch.isfinite(out.loss)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.loss, case.leaves))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_damaged_state_shows_as_nan(compiled):
    """A kernel that skipped NaN in its maximum and clamped it in its exponential would train on."""
    case = random_case(dtype=torch.float32)
    with torch.no_grad():
        case.states[0, 0] = torch.nan
    assert torch.isnan(chunked(case, Objective(), compiled=compiled).loss)


def test_of_equal_logits_the_first_is_the_choice():
    for compiled in (True, False):
        case = random_case(dtype=torch.float32)
        with torch.no_grad():
            case.head.zero_(), case.bias.zero_()
        assert chunked(case, Objective(), compiled=compiled).correct.equal(case.slots.label == 0)


def test_bfloat16_states_are_summed_in_float32():
    """Weights of the head stay float32, as a trainer keeps them, and so does their gradient."""
    places = row_of_chains(120, 4)
    case, exact = (random_case(places, dtype=dtype) for dtype in (torch.bfloat16, torch.float64))
    case = case.with_leaves(case.states, case.head.detach().float().requires_grad_(), case.bias.detach().float().requires_grad_())
    fast, plain = chunked(case, Objective(), 16), readable(exact, Objective())
    torch.testing.assert_close(fast.loss.double(), plain.loss, rtol=0.01, atol=0)
    assert fast.loss.dtype == torch.float32
    states, head, bias = torch.autograd.grad(fast.loss, case.leaves)
    assert (states.dtype, head.dtype, bias.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    for mine, theirs in zip((states, head, bias), torch.autograd.grad(plain.loss, exact.leaves), strict=True):
        assert (mine.double() - theirs).norm() < 0.02 * theirs.norm()


def test_autocast_does_not_reach_into_the_loss():
    case = random_case(dtype=torch.float32)
    plain = chunked(case, Objective(), compiled=False)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = chunked(case, Objective(), compiled=False)
    assert mixed.loss.equal(plain.loss)


def test_no_slots_are_no_loss():
    """A packed sequence may hold documents whose answers are cut away; its loss and gradients are zero."""
    case = random_case()
    none = torch.empty(0, dtype=torch.long)
    empty = chunked_loss(
        case.states[:0], case.head, case.teacher_states, case.teacher_head, TrainedSlots(none, none, none, none, torch.empty(0)), Objective()
    )
    empty.loss.backward()
    assert float(empty.loss.detach()) == float(empty.weight) == 0 and not case.head.grad.any()


def test_without_gradients_no_gradient_is_made(monkeypatch):
    monkeypatch.setattr(vocabulary, "gradient_", None)
    case = random_case()
    with torch.no_grad():
        assert not chunked(case, Objective(), compiled=False).loss.requires_grad


def test_slots_may_come_in_any_order():
    case = random_case()
    order = torch.randperm(len(case.slots), generator=torch.Generator().manual_seed(1))
    shuffled = replace(case, states=case.states[order], slots=case.slots.take(order))
    one, other = (chunked(c, OBJECTIVES["d-pace"]) for c in (case, shuffled))
    torch.testing.assert_close(other.loss, one.loss)
    torch.testing.assert_close(other.overlap, one.overlap[order])
