"""What the chunked loss does with rows of V logits between the matrix products, as tensor operations for any device and precision.

`vocabulary_kernels` has the same three functions compiled for the CPU. C slots, R rows of the target's probabilities; `places` [C] says
which row belongs to a slot.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowStatistics:
    """[C] each, q the draft's distribution, p the target's.

    correct: the label has the highest logit. label_logprob: log q(label). cross: sum_v p log q. overlap: sum_v min(p, q).
    below: sum of q over the tokens with q < p.
    """

    correct: Tensor
    label_logprob: Tensor
    cross: Tensor
    overlap: Tensor
    below: Tensor


def store_softmax(logits: Tensor, p: Tensor, places: Tensor) -> Tensor:
    """p[places] = softmax(logits); returns sum_v p log p, [N]. logits: [N, V]. p: [R, V]. places: [N]."""
    log_p = logits.to(p.dtype).log_softmax(-1)
    rows = log_p.exp()
    p[places] = rows
    return torch.linalg.vecdot(rows, log_p)


def softmax_(logits: Tensor, p: Tensor, places: Tensor, label: Tensor) -> RowStatistics:
    """Turn logits [C, V] into probabilities in place. p: [R, V]. places, label: [C]."""
    correct = logits.argmax(-1) == label
    log_q = logits.sub_(logits.logsumexp(-1, keepdim=True))
    label_logprob = log_q.gather(-1, label[:, None])[:, 0]
    p = p[places]
    cross = torch.linalg.vecdot(p, log_q)
    q = log_q.exp_()
    is_below = q < p
    overlap = torch.minimum(p, q).sum(-1)
    return RowStatistics(correct, label_logprob, cross, overlap, torch.linalg.vecdot(q, is_below.to(q.dtype)))


def gradient_(
    q: Tensor, p: Tensor, places: Tensor, label: Tensor, q_factor: Tensor, p_factor: Tensor, label_factor: Tensor, below_factor: Tensor | None
) -> None:
    """q = q * q_factor - p * p_factor + onehot(label) * label_factor, and + q * below_factor where q < p. q: [C, V]; factors: [C]."""
    p = p[places]
    if below_factor is None:
        q.mul_(q_factor[:, None])
    else:
        q.mul_(torch.where(q < p, (q_factor + below_factor)[:, None], q_factor[:, None]))
    q.sub_(p.mul_(p_factor[:, None]))
    q.scatter_add_(-1, label[:, None], label_factor[:, None])
