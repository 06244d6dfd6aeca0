"""COD, conditional drop-token: which masks are worth training on (METHOD: section 3), and what those kept stand for.

kept(d)       = a draw of round(n * max(r^d, r_min)) of the eligible slots of depth d, all of whose chain is kept
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

    predicted: [L] bool, True where a token belongs to an answer. A slot (a, d) is eligible if x[a+1] .. x[a+d+1] all do: decoding
    meets no other. With anchors "all", as published, it is if x[a+d+1] exists: chains start in the prompt, too. At depth d about
    n * max(r^d, r_min) of the n chains eligible at depth 0 are kept, drawn evenly among the successors of those kept at depth d-1, so
    that every kept mask has its whole chain. retention 1 keeps all and needs no generator.
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
    """[K] float32: how many slots of each depth one kept slot stands for, eligible / kept >= 1; 1 at depth 0, where none is dropped.

    kept: of `keep_masks` with the same predicted and anchors. All eligible slots of a depth are equally likely to be kept, so a sum over
    kept slots times this factor has the sum over all eligible ones as its expectation. A depth that keeps none (a document
    of a few tokens) gets 1; nothing stands for its slots.
    """
    reach = _reach(predicted, anchors)
    eligible = [int((reach > depth).sum()) for depth in range(1, len(kept) + 1)]
    return torch.tensor([1.0, *(every / len(some) if len(some) else 1.0 for every, some in zip(eligible, kept, strict=True))])


def _reach(predicted: Tensor, anchors: Anchors) -> Tensor:
    """[L] how many tokens a chain that starts at each position may predict: slot (a, d) is eligible if reach[a] > d."""
    if anchors == "all":
        predicted = torch.ones_like(predicted)
    index = torch.arange(len(predicted), device=predicted.device)
    # The first token at or behind each position that is not predicted; one past the end counts as such.
    stop = torch.where(predicted, len(predicted), index).flip(0).cummin(0).values.flip(0)
    return torch.cat([stop[1:] - index[1:], index.new_zeros(1)]) if len(predicted) else index
