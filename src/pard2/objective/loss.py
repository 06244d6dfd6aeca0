"""The training loss, in its readable form and in the form that never holds all logits.

    loss = ce_alpha * sum(w * CE) / total + kd_alpha * sum(w * KL(p_T || q)) / total

CE is against the data token, KL is forward, over the whole vocabulary, against the target's
distribution at the same position (METHOD: section 4). `total` is sum(w) over the global batch.

Shapes: P slots to predict, T teacher rows, V vocabulary, H draft hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossOutput:
    """loss: scalar with gradient. ce, kl: scalars, weighted means without gradient. correct: [P] bool, argmax equals the data token."""

    loss: Tensor
    ce: Tensor
    kl: Tensor
    correct: Tensor


def weighted_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, weights: Tensor, total: Tensor | float, ce_alpha: float = 0.1, kd_alpha: float = 1.0
) -> LossOutput:
    """The readable form. logits: [P, V]; teacher_logits: [P, V]; labels, weights: [P]."""
    log_q = logits.log_softmax(-1)
    log_p = teacher_logits.log_softmax(-1)
    ce = (weights * F.nll_loss(log_q, labels, reduction="none")).sum() / total
    kl = (weights * (log_p.exp() * (log_p - log_q)).sum(-1)).sum() / total
    return LossOutput(ce_alpha * ce + kd_alpha * kl, ce.detach(), kl.detach(), logits.argmax(-1) == labels)


def chunked_loss(
    states: Tensor,
    head: Tensor,
    teacher_states: Tensor,
    teacher_head: Callable[[Tensor], Tensor],
    teacher_rows: Tensor,
    labels: Tensor,
    weights: Tensor,
    total: Tensor | float,
    ce_alpha: float = 0.1,
    kd_alpha: float = 1.0,
    chunk: int = 128,
) -> LossOutput:
    """The same loss from final states, `chunk` slots at a time; memory does not grow with P.

    states: [P, H] of the draft; head: [V, H], given a gradient if it wants one. teacher_states: [T, H_T];
    `teacher_head` makes logits [.., V] of them. teacher_rows: [P], the row that says the target's
    distribution for each slot; all depths that predict one token share a row, which is computed once a chunk.
    """
    loss, ce, kl, correct = _ChunkedLoss.apply(
        states, head, teacher_states, teacher_head, teacher_rows, labels, weights, total, ce_alpha, kd_alpha, chunk
    )
    return LossOutput(loss, ce, kl, correct)


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, chunk by chunk, while the logits are at hand; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, states, head, teacher_states, teacher_head, teacher_rows, labels, weights, total, ce_alpha, kd_alpha, chunk):
        weights = weights.to(torch.promote_types(states.dtype, torch.float32)) / total
        grad_states = torch.zeros_like(states) if states.requires_grad else None
        grad_head = torch.zeros_like(head) if head.requires_grad else None
        ce, kl = weights.new_zeros(()), weights.new_zeros(())
        correct = torch.empty_like(labels, dtype=torch.bool)
        # Slots that predict one token lie side by side, so that a chunk needs few teacher rows.
        for slots in teacher_rows.argsort(stable=True).split(chunk):
            rows, which = teacher_rows[slots].unique_consecutive(return_inverse=True)
            w, label = weights[slots], labels[slots]
            log_p = teacher_head(teacher_states[rows]).to(w.dtype).log_softmax(-1)
            p = log_p.exp()
            negative_entropy = torch.linalg.vecdot(p, log_p)
            del log_p
            p = p[which]
            logits = (states[slots] @ head.T).to(w.dtype)
            correct[slots] = logits.argmax(-1) == label
            log_z = logits.logsumexp(-1)
            ce += (w * (log_z - logits.gather(-1, label[:, None])[:, 0])).sum()
            # sum p (log p - log q), log q = logits - log_z
            kl += (w * (negative_entropy[which] - torch.linalg.vecdot(p, logits) + log_z)).sum()
            if grad_states is None and grad_head is None:
                continue
            # d/dlogits = w ((ce_alpha + kd_alpha) q - kd_alpha p - ce_alpha onehot)
            grad = logits.sub_(log_z[:, None]).exp_().mul_((ce_alpha + kd_alpha) * w[:, None])
            grad.sub_(p.mul_(kd_alpha * w[:, None]))
            grad.scatter_add_(-1, label[:, None], (-ce_alpha * w)[:, None])
            grad = grad.to(states.dtype)
            if grad_states is not None:
                grad_states[slots] = grad @ head
            if grad_head is not None:
                grad_head.addmm_(grad.T, states[slots])
        ctx.save_for_backward(grad_states, grad_head)
        ctx.mark_non_differentiable(ce, kl, correct)
        return ce_alpha * ce + kd_alpha * kl, ce, kl, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        grad_states, grad_head = ctx.saved_tensors
        scale = grads[0]
        return (
            grad_states * scale if grad_states is not None else None,
            grad_head * scale if grad_head is not None else None,
            *[None] * 9,
        )
