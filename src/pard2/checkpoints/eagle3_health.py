"""Weights of an EAGLE-3 draft that nobody can have trained: told when it is read.

Only what can be shown is told. A head that was trained, however little and from whatever start, has moved the
rows of rare tokens together, and frequent tokens' rows further than others'.
"""

from collections.abc import Mapping
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from pard2.checkpoints.eagle3_weights import EMBEDDING, HEAD

_ROWS, _PAIRS = 8192, 1024  # that are looked at, at most
_FEWEST, _NARROWEST = 1024, 64  # rows and columns that chance can be told from
_DEVIATIONS = 5  # of a normal distribution


def untrained(weights: Mapping[str, Tensor], target_embedding: Tensor | None) -> list[str]:
    """What of these weights is not as training leaves it, each "a trained `name`: why".

    weights: of an `Eagle3Draft`, by name.
    target_embedding: [V, width], None where it cannot be read.
    """
    found = {key: why for key, tensor in sorted(weights.items()) if (why := _broken(tensor))}
    for key in (HEAD, EMBEDDING):
        if key in weights and key not in found and looks_drawn(weights[key]):
            found[key] = "its numbers are as a random generator left them"
    own = weights.get(EMBEDDING)
    if own is not None and target_embedding is not None and EMBEDDING not in found and _unrelated(own, target_embedding):
        found[EMBEDDING] = "its rows have nothing in common with those of the target's embedding"
    return [f"a trained `{key}`: {why}" for key, why in found.items()]


def _broken(tensor: Tensor) -> str | None:
    low, high = (float(one) for one in tensor.aminmax())
    if not (abs(low) < torch.inf and abs(high) < torch.inf):  # NaN, too
        return "it holds NaN or infinity"
    if tensor.ndim < 2:
        return None
    if low == high:
        return f"all its numbers are {low:g}"
    return "all its rows are the same" if len(tensor) > 1 and bool((tensor[1:] == tensor[:1]).all()) else None


def looks_drawn(table: Tensor) -> bool:
    """Whether the numbers of a table [R, width] were each drawn alike and on their own, and never trained.

    False for a table that is too small to tell. Three things are compared with chance: the length of the mean
    row, how much rows differ in length, and how much columns do.
    """
    rows = table[:: -(-len(table) // _ROWS)].float()
    count, width = rows.shape
    if count < _FEWEST or width < _NARROWEST:
        return False
    square = rows.square()
    mean_square = square.mean()
    mean = float(rows.mean(0).square().sum() * count / mean_square)  # chi squared with `width` degrees of freedom
    fourth = float(square.square().mean() / mean_square.square()) - 1
    lengths, columns = (float(sums.std() / sums.mean()) for sums in (square.sum(1), square.sum(0)))
    return (
        abs(mean - width) < _DEVIATIONS * sqrt(2 * width)
        and abs(lengths / sqrt(fourth / width) - 1) < _DEVIATIONS / sqrt(2 * count)
        and abs(columns / sqrt(fourth / count) - 1) < _DEVIATIONS / sqrt(2 * width)
    )


def _unrelated(own: Tensor, target: Tensor) -> bool:
    """Whether two tables' rows of the same tokens point where chance lets them."""
    if own.shape != target.shape or own.numel() < _FEWEST * _NARROWEST:
        return False
    step = -(-len(own) // _PAIRS)
    one, other = own[::step].float(), target[::step].to(own.device).float()
    # What all rows share is left out: it tells nothing of the tokens.
    cosines = F.cosine_similarity(one - one.mean(0), other - other.mean(0))
    return abs(float(cosines.mean())) < _DEVIATIONS / sqrt(one.numel())
