"""Token weights: how much each slot's prediction counts (METHOD: section 4).

For the trained slots k = 1, 2, .. of one chain in order of depth:

    q_k       the draft's probability of the data token
    o_k       sum_v min(p_k(v), q_k(v)), the draft's overlap with the target
    c_k       how many slots slot k stands for under COD's correction; 1 without it

    CAT       w(a, d) = prod_{j=1..d} p_T(x[a+j] | x[<a+j])               known before the draft's pass
    D-PACE    w_k = sum_{m>=k} c_m prod_{j<=m} ((1 - floor) q_j + floor)  arXiv 2605.18810
    overlap   w_k = c_k prod_{j<k} o_j
    R         sum_k prod_{j<=k} o_j                                       expected accepted tokens of a chain

With anchors "all" the first masks of a chain may stand for prompt tokens. Such slots are not trained; in
every product they are a factor of 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pard2.objective.layout import SlotLayout


def cat_weights(layout: SlotLayout, target_logprobs: Tensor) -> Tensor:
    """CAT: w(a, d) = prod_{j=1..d} p_T(x[a+j] | x[<a+j]), w(a, 0) = 1.

    Returns [S] float32 without gradient. The predicted token's own probability is not in its weight.

    layout: S slots of a packed sequence of N tokens.
    target_logprobs: [N], the target's teacher-forced log-probability of each token; 0 for a document's first.
    """
    # A product over a range is a difference of running sums; float64 keeps the difference exact enough.
    # -inf, of a token that the target rules out, would make every later difference NaN; exp(-1e4) is 0, too.
    logprobs = target_logprobs.detach().double().clamp(min=-1e4)
    before = F.pad(logprobs.cumsum(0), (1, 0))
    first = layout.anchor_index + 1
    return (before[first + layout.depth] - before[first]).exp().float()


@dataclass(frozen=True)
class Chains:
    """P slots as a matrix with a row for each chain, in which its slots stand in order of depth.

    index: [P], where each slot stands in the flattened matrix.
    rows, columns: size of the matrix.
    """

    index: Tensor
    rows: int
    columns: int

    @classmethod
    def of(cls, chain: Tensor, depth: Tensor) -> "Chains":
        """chain, depth: [P] int64; slots of equal chain ids belong together, in any order."""
        if not len(chain):
            return cls(chain, 0, 0)
        order = depth.argsort(stable=True)
        order = order[chain[order].argsort(stable=True)]
        _, row, size = chain[order].unique_consecutive(return_inverse=True, return_counts=True)
        column = torch.arange(len(chain), device=chain.device) - (size.cumsum(0) - size)[row]
        columns = int(size.max())
        index = torch.empty_like(order)
        index[order] = row * columns + column
        return cls(index, len(size), columns)

    def spread(self, values: Tensor, fill: float) -> Tensor:
        """[rows, columns] of values [P]; `fill` past the end of the shorter chains."""
        return values.new_full((self.rows * self.columns,), fill).scatter(0, self.index, values).view(self.rows, self.columns)

    def collect(self, matrix: Tensor) -> Tensor:
        """[P] of a matrix [rows, columns]."""
        return matrix.flatten()[self.index]


def d_pace_weights(chains: Chains, label_probability: Tensor, correction: Tensor, floor: float) -> Tensor:
    """[P] D-PACE weights, without gradient.

    The correction of slot m stands inside the sum, at the one term that is lost where COD drops m: sum_k w_k
    loss_k over the kept slots then has the sum over all of them as its expectation.

    label_probability: [P], q_k.
    correction: [P], c_k.
    """
    factor = (1 - floor) * label_probability.detach() + floor
    reached = chains.spread(factor, 1).cumprod(1) * chains.spread(correction, 0)
    return chains.collect(reached.flip(1).cumsum(1).flip(1))


def overlap_weights(chains: Chains, overlap: Tensor, correction: Tensor) -> Tensor:
    """[P] overlap weights, without gradient. As in CAT, a slot's own overlap is not in its weight.

    overlap: [P], o_k.
    correction: [P], c_k.
    """
    before = F.pad(chains.spread(overlap.detach(), 1), (1, -1), value=1.0).cumprod(1)
    return correction * chains.collect(before)


def expected_accepted(chains: Chains, overlap: Tensor) -> Tensor:
    """[chains] R of each chain, with gradient. overlap: [P], o_k."""
    return (chains.spread(overlap, 1).cumprod(1) * chains.spread(torch.ones_like(overlap), 0)).sum(1)
