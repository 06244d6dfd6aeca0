"""COD, conditional drop-token: which masks are worth training on (METHOD: section 3)."""

import torch
from torch import Tensor


def keep_masks(predicted: Tensor, draft_tokens: int, retention: float, min_retention: float, generator: torch.Generator | None) -> list[Tensor]:
    """Anchors that keep a mask at depth 1, 2, .. K-1, each list sorted and contained in the one before.

    predicted: [L] bool, True where a token is to be predicted. A slot (a, d) is eligible if x[a+1] and x[a+d+1]
    are: its chain then starts at an answer and ends inside one. At depth d about n * max(r^d, r_min) of the n
    chains eligible at depth 0 are kept, drawn evenly among the successors of those kept at depth d-1, so
    that every kept mask has its whole chain. retention 1 keeps all and needs no generator.
    """
    length = predicted.shape[0]
    current = torch.nonzero(predicted[1:])[:, 0]
    chains = current.shape[0]
    kept = []
    for depth in range(1, draft_tokens):
        successors = current[current + depth + 1 < length]
        successors = successors[predicted[successors + depth + 1]]
        wanted = round(chains * max(retention**depth, min_retention))
        if wanted < successors.shape[0]:
            drawn = torch.randperm(successors.shape[0], generator=generator)[:wanted]
            successors = successors[drawn.sort().values]
        kept.append(successors)
        current = successors
    return kept
