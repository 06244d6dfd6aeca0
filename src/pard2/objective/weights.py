"""Token weights: how much each slot's prediction counts (METHOD: section 4)."""

import torch
from torch import Tensor

from pard2.objective.layout import SlotLayout


def cat_weights(layout: SlotLayout, target_logprobs: Tensor) -> Tensor:
    """CAT: w(a, d) = prod_{j=1..d} p_T(x[a+j] | x[<a+j]), w(a, 0) = 1.

    target_logprobs: [N], the target's teacher-forced log-probability of each token of the row, 0 for
    a document's first token. Returns [S] float32 without gradient. The predicted token's own
    probability is not in its weight.
    """
    # A product over a stretch is a difference of running sums; float64 keeps the difference exact enough.
    # -inf, of a token that the target rules out, would turn every later difference into NaN; exp(-1e4) is 0 as well.
    logprobs = target_logprobs.detach().double().clamp(min=-1e4)
    before = torch.nn.functional.pad(logprobs.cumsum(0), (1, 0))
    first = layout.anchor_index + 1
    return (before[first + layout.depth] - before[first]).exp().float()
