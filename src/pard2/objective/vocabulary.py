"""What the chunked loss computes on logits between the matrix products, for any device and dtype.

`vocabulary_kernels` has the same three functions compiled for the CPU.

Shapes: C slots of a chunk, V vocabulary, R rows of the buffer p that holds the target's probabilities; `rows`
[C] says which of them belongs to each slot.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowStatistics:
    """[C] each; q is the draft's distribution, p the target's.

    correct: the label has the highest logit.
    label_logprob: log q(label).
    cross: sum_v p log q.
    overlap: sum_v min(p, q).
    below: sum of q over the tokens with q < p.
    """

    correct: Tensor
    label_logprob: Tensor
    cross: Tensor
    overlap: Tensor
    below: Tensor


def store_softmax(logits: Tensor, p: Tensor, rows: Tensor) -> Tensor:
    """p[rows] = softmax(logits). Returns [N], sum_v p log p.

    logits: [N, V].
    p: [R, V].
    rows: [N].
    """
    log_p = logits.to(p.dtype).log_softmax(-1)
    stored = log_p.exp()
    p[rows] = stored
    return torch.linalg.vecdot(stored, log_p)


def softmax_(logits: Tensor, p: Tensor, rows: Tensor, label: Tensor) -> RowStatistics:
    """Turn logits into probabilities in place, and compare them with p.

    logits: [C, V].
    p: [R, V].
    rows, label: [C].
    """
    correct = logits.argmax(-1) == label
    log_q = logits.sub_(logits.logsumexp(-1, keepdim=True))
    label_logprob = log_q.gather(-1, label[:, None])[:, 0]
    p = p[rows]
    cross = torch.linalg.vecdot(p, log_q)
    q = log_q.exp_()
    is_below = q < p
    overlap = torch.minimum(p, q).sum(-1)
    return RowStatistics(correct, label_logprob, cross, overlap, torch.linalg.vecdot(q, is_below.to(q.dtype)))


def gradient_(
    q: Tensor,
    p: Tensor,
    rows: Tensor,
    label: Tensor,
    q_factor: Tensor,
    p_factor: Tensor,
    label_factor: Tensor,
    below_factor: Tensor | None,
) -> None:
    """The gradient of the logits, in place of q.

        q * q_factor - p * p_factor + onehot(label) * label_factor, and + q * below_factor where q < p

    q: [C, V].
    p: [R, V].
    rows, label: [C].
    q_factor, p_factor, label_factor, below_factor: [C].
    """
    p = p[rows]
    if below_factor is None:
        q.mul_(q_factor[:, None])
    else:
        q.mul_(torch.where(q < p, (q_factor + below_factor)[:, None], q_factor[:, None]))
    q.sub_(p.mul_(p_factor[:, None]))
    q.scatter_add_(-1, label[:, None], label_factor[:, None])
