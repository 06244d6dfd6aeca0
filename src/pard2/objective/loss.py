"""The training loss in its readable form, which holds all logits at once; `chunked_loss` is its fast twin.

    loss = ce_alpha * sum(w CE) + kd_alpha * sum(w KL(p || q)) + tf_eal_alpha * sum over chains (1 - R / K)

q is the draft's distribution and p the target's at the same position, temperature 1; CE is against the data
token, KL over the whole vocabulary (METHOD: section 4). The weights w, and R, the expected accepted tokens of
a chain, are defined in `weights`. All are SUMS over slots: the trainer divides by the sum of w over the
global batch.

Shapes: P slots that predict a token, T teacher rows, V vocabulary, H draft hidden size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pard2.objective.weights import Chains, d_pace_weights, expected_accepted, overlap_weights


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised.

    weighting: "fixed" takes w from the slots as it stands (CAT, or 1); "d-pace" and "overlap" compute it from
        the draft's own distribution, with the slots' weight as COD's correction.
    ce_alpha, kd_alpha, tf_eal_alpha: factors of the three sums.
    d_pace_floor: the floor of D-PACE.
    draft_tokens: K of 1 - R / K.
    """

    weighting: Literal["fixed", "d-pace", "overlap"] = "fixed"
    ce_alpha: float = 0.1
    kd_alpha: float = 1.0
    tf_eal_alpha: float = 0.0
    d_pace_floor: float = 0.5
    draft_tokens: int = 16


@dataclass(frozen=True)
class TrainedSlots:
    """The P slots that predict a token, in any order.

    chain: [P] int64, any ids; slots of one chain (document and anchor) share one.
    depth: [P] int64, distinct within a chain.
    teacher_row: [P] int64, the row of the teacher's states that gives the target's distribution of the
        predicted token; all depths that predict one token share it.
    label: [P] int64, the data token.
    weight: [P] float32, what is known before the draft's pass: CAT or 1, times COD's correction if wanted.
    """

    chain: Tensor
    depth: Tensor
    teacher_row: Tensor
    label: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]

    def take(self, index: Tensor) -> "TrainedSlots":
        """The slots of these indices, in their order."""
        return TrainedSlots(self.chain[index], self.depth[index], self.teacher_row[index], self.label[index], self.weight[index])


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """Sums over the slots, not means.

    loss: scalar with gradient.
    weight: scalar, sum of w.
    ce, kl: scalars without gradient, sum(w CE) and sum(w KL).
    correct: [P] bool, the draft's first choice is the data token.
    overlap: [P], sum_v min(p, q).
    """

    loss: Tensor
    weight: Tensor
    ce: Tensor
    kl: Tensor
    correct: Tensor
    overlap: Tensor


def weighted_loss(logits: Tensor, teacher_logits: Tensor, slots: TrainedSlots, objective: Objective) -> LossOutput:
    """The loss of P slots.

    logits: [P, V] of the draft.
    teacher_logits: [T, V] of the target.
    """
    log_q = logits.log_softmax(-1)
    log_p = teacher_logits.log_softmax(-1)[slots.teacher_row]
    q, p = log_q.exp(), log_p.exp()
    overlap = torch.minimum(p, q).sum(-1)
    chains = Chains.of(slots.chain, slots.depth)
    w = effective_weights(objective, chains, slots.weight.to(q.dtype), q.gather(-1, slots.label[:, None])[:, 0], overlap)
    ce = (w * F.nll_loss(log_q, slots.label, reduction="none")).sum()
    kl = (w * (p * (log_p - log_q)).sum(-1)).sum()
    loss = objective.ce_alpha * ce + objective.kd_alpha * kl
    if objective.tf_eal_alpha:
        loss = loss + objective.tf_eal_alpha * (1 - expected_accepted(chains, overlap) / objective.draft_tokens).sum()
    correct = logits.argmax(-1) == slots.label
    return LossOutput(loss=loss, weight=w.sum(), ce=ce.detach(), kl=kl.detach(), correct=correct, overlap=overlap.detach())


def effective_weights(objective: Objective, chains: Chains, weight: Tensor, label_probability: Tensor, overlap: Tensor) -> Tensor:
    """[P] w of each slot, without gradient.

    weight: [P], that of the slots.
    label_probability: [P], the draft's probability of the data token.
    overlap: [P], sum_v min(p, q).
    """
    if objective.weighting == "d-pace":
        return d_pace_weights(chains, label_probability, weight, objective.d_pace_floor)
    if objective.weighting == "overlap":
        return overlap_weights(chains, overlap, weight)
    return weight
