"""The loss of `loss.weighted_loss` from final states, a chunk of slots at a time: no more than a chunk's logits ever exist.

Gradients are made in the forward pass while a chunk's logits are at hand. With w the weight of a slot, A = sum of q where q < p,
and b = -tf_eal_alpha / K * dR/do,

    d loss / d logits = w (ce_alpha + kd_alpha) q - w kd_alpha p - w ce_alpha onehot(label)  +  b q ([q < p] - A)

Weights and R look at a whole chain, so a chunk is made of whole chains. Memory grows neither with P nor with K.
"""

from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pard2.errors import Pard2Error
from pard2.objective import vocabulary
from pard2.objective.chunks import plan_chunks
from pard2.objective.loss import LossOutput, Objective, TrainedSlots, effective_weights
from pard2.objective.weights import Chains, expected_accepted

TeacherHead = Callable[[Tensor], Tensor]

CHUNK = 256  # slots whose logits are held at once


def chunked_loss(
    states: Tensor,
    head: Tensor,
    teacher_states: Tensor,
    teacher_head: TeacherHead,
    slots: TrainedSlots,
    objective: Objective,
    bias: Tensor | None = None,
    chunk: int = CHUNK,
    compiled: bool = True,
) -> LossOutput:
    """The sums of `weighted_loss`, `chunk` slots (or one longer chain) at a time.

    states: [P, H] of the draft. head: [V, H] and bias: [V], of the draft's logits. teacher_states: [T, H_T]; `teacher_head` makes
    logits [.., V] of them and is asked for every row once. Matrix products run in the states' dtype, all else in float32
    (float64 for float64). compiled: use the CPU's kernels where they can run; False for the tensor operations that they replace.
    Backward may run once. Raises `Pard2Error` if the teacher's logits have another size than the draft's.
    """
    if not torch.is_grad_enabled():
        states, head, bias = states.detach(), head.detach(), bias if bias is None else bias.detach()
    with torch.autocast(states.device.type, enabled=False):
        return LossOutput(*_ChunkedLoss.apply(states, head, bias, teacher_states, teacher_head, slots, objective, chunk, compiled))


def has_kernels(states: Tensor) -> bool:
    """Whether `vocabulary_kernels` can run: float32 on a CPU, with numba installed (extra `cpu`)."""
    return states.device.type == "cpu" and states.dtype == torch.float32 and find_spec("numba") is not None


class _ChunkedLoss(torch.autograd.Function):
    """Its backward only scales the gradients that its forward made."""

    @staticmethod
    def forward(ctx: Any, states, head, bias, teacher_states, teacher_head, slots, objective, chunk, compiled):
        operations: ModuleType = vocabulary
        if compiled and has_kernels(states):
            from pard2.objective import vocabulary_kernels as operations  # numba is an extra
        precise = torch.promote_types(states.dtype, torch.float32)
        matrix = head.to(states.dtype)
        grad_states = torch.zeros_like(states) if states.requires_grad else None
        grad_head = torch.zeros_like(head, dtype=precise) if head.requires_grad else None
        grad_bias = torch.zeros_like(bias, dtype=precise) if bias is not None and bias.requires_grad else None
        loss, weight, ce, kl = (states.new_zeros((), dtype=precise) for _ in range(4))
        correct = torch.empty_like(slots.label, dtype=torch.bool)
        overlap = torch.empty_like(slots.label, dtype=precise)

        chunks, rows = plan_chunks(slots, chunk)
        p = states.new_empty(rows, len(head), dtype=precise)
        negative_entropy = p.new_empty(rows)
        # One buffer for all chunks: fresh memory of this size comes page by page, at a sixth of the product's own time.
        buffer = states.new_empty(max((len(part.slots) for part in chunks), default=0), len(head))
        for part in chunks:
            if len(part.new_rows):
                teacher = teacher_head(teacher_states[part.new_rows])
                if teacher.shape[-1] != len(head):
                    raise Pard2Error(
                        f"the target has logits for {teacher.shape[-1]} tokens, the draft for {len(head)}; start from a draft with the target's "
                        "vocab_size (draft.layers cuts one out of it)"
                    )
                negative_entropy[part.new_places] = operations.store_softmax(teacher, p, part.new_places)
            x, some = states[part.slots], slots.take(part.slots)
            logits = torch.mm(x, matrix.T, out=buffer[: len(x)]).to(precise)
            if bias is not None:
                logits += bias
            said = operations.softmax_(logits, p, part.places, some.label)
            correct[part.slots], overlap[part.slots] = said.correct, said.overlap

            chains = Chains.of(some.chain, some.depth)
            w = effective_weights(objective, chains, some.weight.to(precise), said.label_logprob.exp(), said.overlap)
            weight += w.sum()
            ce -= (w * said.label_logprob).sum()
            kl += (w * (negative_entropy[part.places] - said.cross)).sum()
            below_factor = None
            if objective.tf_eal_alpha:
                accepted, slope = _accepted_and_slope(chains, said.overlap)
                loss += objective.tf_eal_alpha * (1 - accepted / objective.draft_tokens).sum()
                below_factor = -objective.tf_eal_alpha / objective.draft_tokens * slope
            if grad_states is None and grad_head is None and grad_bias is None:
                continue

            q_factor = (objective.ce_alpha + objective.kd_alpha) * w
            if below_factor is not None:
                q_factor = q_factor - below_factor * said.below
            operations.gradient_(logits, p, part.places, some.label, q_factor, objective.kd_alpha * w, -objective.ce_alpha * w, below_factor)
            if grad_bias is not None:
                grad_bias += logits.sum(0)
            grad = logits.to(x.dtype)
            if grad_states is not None:
                grad_states[part.slots] = grad @ matrix
            if grad_head is not None:
                if x.dtype == precise:
                    grad_head.addmm_(grad.T, x)
                else:
                    grad_head += grad.T @ x
        loss += objective.ce_alpha * ce + objective.kd_alpha * kl
        ctx.save_for_backward(grad_states, grad_head, grad_bias)
        ctx.states_dtype, ctx.head_dtype, ctx.bias_dtype = states.dtype, head.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(weight, ce, kl, correct, overlap)
        return loss, weight, ce, kl, correct, overlap

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        # In place, for a head's gradient is large. A second backward pass would scale twice; torch sees that and raises RuntimeError.
        scaled = (None if g is None else g.mul_(grads[0]) for g in ctx.saved_tensors)
        dtypes = (ctx.states_dtype, ctx.head_dtype, ctx.bias_dtype)
        return *(g if g is None else g.to(dtype) for g, dtype in zip(scaled, dtypes, strict=True)), *[None] * 6


def _accepted_and_slope(chains: Chains, overlap: Tensor) -> tuple[Tensor, Tensor]:
    """R of each chain, and [C] how fast it grows with the overlap of each slot."""
    with torch.enable_grad():
        overlap = overlap.detach().requires_grad_()
        accepted = expected_accepted(chains, overlap)
        (slope,) = torch.autograd.grad(accepted.sum(), overlap)
    return accepted.detach(), slope
