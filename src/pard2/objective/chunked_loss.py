"""The loss of `loss.weighted_loss` from final states, chunk by chunk: logits exist for one chunk only.

Gradients are made in the forward pass while a chunk's logits are at hand. With w the weight of a slot, A the
sum of q over the tokens with q < p, and b = -tf_eal_alpha / K * dR/do,

    d loss / d logits = w (ce_alpha + kd_alpha) q - w kd_alpha p - w ce_alpha onehot(label)
                        + b q ([q < p] - A)

Weights and R depend on a whole chain, so a chunk is made of whole chains. Memory grows neither with P nor K.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pard2.errors import Pard2Error
from pard2.objective import vocabulary
from pard2.objective.chunks import Chunk, plan_chunks
from pard2.objective.loss import LossOutput, Objective, TrainedSlots, effective_weights
from pard2.objective.weights import Chains, expected_accepted

TeacherHead = Callable[[Tensor], Tensor]

CHUNK = 256  # slots whose logits are held at once


def chunked_loss(
    states: Tensor,
    head: Tensor,
    teacher_states: Tensor | None,
    teacher_head: TeacherHead,
    slots: TrainedSlots,
    objective: Objective,
    bias: Tensor | None = None,
    chunk: int = CHUNK,
) -> LossOutput:
    """The sums of `weighted_loss`, computed `chunk` slots (or one longer chain) at a time.

    Matrix products run in the dtype of `states`, all else in float32 (float64 for float64). Backward may run
    only once.

    states: [P, H], the draft's final states.
    head: [V, H] of the draft.
    teacher_states: [T, H_T], the target's final states. None for an objective that does not ask for the
        target's distributions: KL and overlap are then 0.
    teacher_head: makes logits [.., V] of teacher states; asked for every row once.
    bias: [V] of the draft's head.

    Raises `Pard2Error` if the teacher's logits have another size than the draft's.
    """
    if not torch.is_grad_enabled():
        states, head, bias = states.detach(), head.detach(), bias if bias is None else bias.detach()
    task = _Task(teacher_states=teacher_states, teacher_head=teacher_head, slots=slots, objective=objective, chunk=chunk)
    with torch.autocast(states.device.type, enabled=False):
        loss, weight, ce, kl, correct, overlap = _ChunkedLoss.apply(states, head, bias, task)
    return LossOutput(loss=loss, weight=weight, ce=ce, kl=kl, correct=correct, overlap=overlap)


def has_kernels(states: Tensor) -> bool:
    """Whether `vocabulary_kernels` can run: float32 on a CPU, with numba installed (extra `cpu`)."""
    return states.device.type == "cpu" and states.dtype == torch.float32 and find_spec("numba") is not None


@dataclass(frozen=True, kw_only=True)
class _Task:
    """The arguments of `chunked_loss` that get no gradient."""

    teacher_states: Tensor | None
    teacher_head: TeacherHead
    slots: TrainedSlots
    objective: Objective
    chunk: int


class _ChunkedLoss(torch.autograd.Function):
    """Its backward only scales the gradients that its forward made."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, bias: Tensor | None, task: _Task):
        done = _Pass(states, head, bias, task)
        for chunk in done.chunks:
            done.add(chunk)
        done.loss += task.objective.ce_alpha * done.ce + task.objective.kd_alpha * done.kl
        ctx.save_for_backward(done.grad_states, done.grad_head, done.grad_bias)
        ctx.states_dtype, ctx.head_dtype, ctx.bias_dtype = states.dtype, head.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(done.weight, done.ce, done.kl, done.correct, done.overlap)
        return done.loss, done.weight, done.ce, done.kl, done.correct, done.overlap

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        # In place, because a head's gradient is large. A second backward pass would scale twice; torch
        # notices the change of a saved tensor and raises RuntimeError.
        scaled = (None if g is None else g.mul_(grads[0]) for g in ctx.saved_tensors)
        dtypes = (ctx.states_dtype, ctx.head_dtype, ctx.bias_dtype)
        return *(g if g is None else g.to(dtype) for g, dtype in zip(scaled, dtypes, strict=True)), None


class _Pass:
    """One pass over all slots, chunk by chunk: the sums of the loss, and the gradients that are wanted."""

    def __init__(self, states: Tensor, head: Tensor, bias: Tensor | None, task: _Task) -> None:
        self.states, self.bias, self.task = states, bias, task
        self.operations: ModuleType = vocabulary
        if has_kernels(states):
            from pard2.objective import vocabulary_kernels  # numba is an extra

            self.operations = vocabulary_kernels
        self.precise = torch.promote_types(states.dtype, torch.float32)
        self.matrix = head.to(states.dtype)
        self.grad_states = torch.zeros_like(states) if states.requires_grad else None
        self.grad_head = torch.zeros_like(head, dtype=self.precise) if head.requires_grad else None
        self.grad_bias = torch.zeros_like(bias, dtype=self.precise) if bias is not None and bias.requires_grad else None
        self.loss, self.weight, self.ce, self.kl = (states.new_zeros((), dtype=self.precise) for _ in range(4))
        self.correct = torch.empty_like(task.slots.label, dtype=torch.bool)
        self.overlap = torch.empty_like(task.slots.label, dtype=self.precise)

        self.chunks, rows = plan_chunks(task.slots, task.chunk)
        # The target's distributions; nobody's, where it is not asked, is a row of zeros.
        self.p = states.new_empty(rows, len(head), dtype=self.precise)
        if task.teacher_states is None:
            self.p = self.p.new_zeros(1, len(head))
        self.negative_entropy = self.p.new_zeros(len(self.p))
        # One buffer for all chunks: fresh memory of this size comes page by page, at a sixth of the product's
        # own time.
        self.logits = states.new_empty(max((len(chunk.slots) for chunk in self.chunks), default=0), len(head))

    def add(self, chunk: Chunk) -> None:
        """Take one chunk into the sums and the gradients."""
        objective, rows = self.task.objective, chunk.buffer_rows
        if self.task.teacher_states is None:
            rows = torch.zeros_like(rows)
        elif len(chunk.new_teacher_rows):
            self._read_teacher(self.task.teacher_states, chunk)
        x, slots = self.states[chunk.slots], self.task.slots.take(chunk.slots)
        logits = torch.mm(x, self.matrix.T, out=self.logits[: len(x)]).to(self.precise)
        if self.bias is not None:
            logits += self.bias
        found = self.operations.softmax_(logits, self.p, rows, slots.label)
        self.correct[chunk.slots], self.overlap[chunk.slots] = found.correct, found.overlap

        chains = Chains.of(slots.chain, slots.depth)
        w = effective_weights(objective, chains, slots.weight.to(self.precise), found.label_logprob.exp(), found.overlap)
        self.weight += w.sum()
        self.ce -= (w * found.label_logprob).sum()
        if self.task.teacher_states is not None:
            self.kl += (w * (self.negative_entropy[rows] - found.cross)).sum()
        below_factor = None
        if objective.tf_eal_alpha:
            accepted, slope = _accepted_and_slope(chains, found.overlap)
            self.loss += objective.tf_eal_alpha * (1 - accepted / objective.draft_tokens).sum()
            below_factor = -objective.tf_eal_alpha / objective.draft_tokens * slope
        if self.grad_states is None and self.grad_head is None and self.grad_bias is None:
            return

        q_factor = (objective.ce_alpha + objective.kd_alpha) * w
        if below_factor is not None:
            q_factor = q_factor - below_factor * found.below
        p_factor, label_factor = objective.kd_alpha * w, -objective.ce_alpha * w
        self.operations.gradient_(logits, self.p, rows, slots.label, q_factor, p_factor, label_factor, below_factor)
        self._add_gradients(chunk, x, logits)

    def _read_teacher(self, states: Tensor, chunk: Chunk) -> None:
        """Store the distributions that this chunk is the first to need."""
        teacher = self.task.teacher_head(states[chunk.new_teacher_rows])
        if teacher.shape[-1] != self.p.shape[-1]:
            raise Pard2Error(
                f"the target has logits for {teacher.shape[-1]} tokens, the draft for {self.p.shape[-1]}; start from a draft with the target's "
                "vocab_size (draft.layers cuts one out of it)"
            )
        self.negative_entropy[chunk.new_buffer_rows] = self.operations.store_softmax(teacher, self.p, chunk.new_buffer_rows)

    def _add_gradients(self, chunk: Chunk, x: Tensor, grad_logits: Tensor) -> None:
        if self.grad_bias is not None:
            self.grad_bias += grad_logits.sum(0)
        grad = grad_logits.to(x.dtype)
        if self.grad_states is not None:
            self.grad_states[chunk.slots] = grad @ self.matrix
        if self.grad_head is not None:
            if x.dtype == self.precise:
                self.grad_head.addmm_(grad.T, x)
            else:
                self.grad_head += grad.T @ x


def _accepted_and_slope(chains: Chains, overlap: Tensor) -> tuple[Tensor, Tensor]:
    """R of each chain, [chains], and [C] its derivative with respect to the overlap of each slot."""
    with torch.enable_grad():
        overlap = overlap.detach().requires_grad_()
        accepted = expected_accepted(chains, overlap)
        (slope,) = torch.autograd.grad(accepted.sum(), overlap)
    return accepted.detach(), slope
