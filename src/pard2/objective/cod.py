"""COD, conditional drop-token: which masks are trained, and how many each stands for (METHOD: section 3).

kept(d)       = round(n * max(r^d, r_min)) eligible slots of depth d, drawn from those with a whole chain
correction(d) = eligible(d) / kept(d)
"""

from typing import Literal

import torch
from torch import Tensor

Anchors = Literal["response", "all"]


def keep_masks(
    predicted: Tensor,
    draft_tokens: int,
    retention: float,
    min_retention: float,
    generator: torch.Generator | None,
    anchors: Anchors = "response",
) -> list[Tensor]:
    """Anchors that keep a mask at depth 1, 2, .. K-1, each list sorted and contained in the one before.

    At depth d about n * max(r^d, r_min) of the n chains eligible at depth 0 are kept, drawn uniformly among
    the successors of those kept at depth d-1, so that every kept mask has its whole chain.

    predicted: [L] bool, True where a token belongs to an answer.
    draft_tokens: K.
    retention: r; 1 keeps all masks and needs no generator.
    min_retention: r_min.
    generator: of the draw.
    anchors: "response": a slot (a, d) is eligible if x[a+1] .. x[a+d+1] all belong to an answer, as in
        decoding. "all", as published: it is if x[a+d+1] exists, so chains start in the prompt, too.
    """
    reach = _reach(predicted, anchors)
    current = torch.nonzero(reach > 0)[:, 0]
    chains = current.shape[0]
    kept = []
    for depth in range(1, draft_tokens):
        successors = current[reach[current] > depth]
        wanted = round(chains * max(retention**depth, min_retention))
        if wanted < successors.shape[0]:
            drawn = torch.randperm(successors.shape[0], generator=generator)[:wanted]
            successors = successors[drawn.sort().values]
        kept.append(successors)
        current = successors
    return kept


def cod_correction(predicted: Tensor, kept: list[Tensor], anchors: Anchors = "response") -> Tensor:
    """[K] float32: how many slots of each depth one kept slot stands for, eligible / kept >= 1.

    All eligible slots of a depth are equally likely to be kept, so a sum over kept slots times this factor
    has the sum over all eligible ones as its expectation. At depth 0 none is dropped: 1. A depth that keeps
    none (a document of a few tokens) gets 1 as well; nothing stands for its slots.

    predicted, anchors: as for `keep_masks`.
    kept: what `keep_masks` returned for them.
    """
    reach = _reach(predicted, anchors)
    eligible = [int((reach > depth).sum()) for depth in range(1, len(kept) + 1)]
    return torch.tensor([1.0, *(every / len(some) if len(some) else 1.0 for every, some in zip(eligible, kept, strict=True))])


def _reach(predicted: Tensor, anchors: Anchors) -> Tensor:
    """[L] how many tokens the chain of each anchor may predict: slot (a, d) is eligible if reach[a] > d."""
    if anchors == "all":
        predicted = torch.ones_like(predicted)
    index = torch.arange(len(predicted), device=predicted.device)
    # The first token at or after each position that is not predicted; the end of the document counts as one.
    stop = torch.where(predicted, len(predicted), index).flip(0).cummin(0).values.flip(0)
    return torch.cat([stop[1:] - index[1:], index.new_zeros(1)]) if len(predicted) else index
