"""From the target's logits to the distribution that the caller asked for: pure functions on the
rows of one sequence's block.

The order is transformers': bias, penalties, barred tokens, temperature, top-k, top-p, min-p. Whatever comes
out here is the p of METHOD: section 6; how tokens are drawn from it is none of this file's business.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pard2.engine.sampling import SamplingParams

_BLOCK = 64
_FEW = 64  # tokens that hold most nuclei


class TokenCounts:
    """Which tokens one sequence holds, and how often its answer says each.

    seen: [V] bool, in the prompt or the answer.
    said: [V] float32, occurrences in the answer.
    tokens: [S], every id that was seen, answers' repeats included: penalties touch these columns alone.
    """

    def __init__(self, prompt: Sequence[int], vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.tokens = torch.tensor(sorted(set(prompt)), dtype=torch.long, device=device)
        self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.said = torch.zeros(vocab_size, device=device)
        self.seen[self.tokens] = True

    def add(self, tokens: Tensor) -> None:
        """Count emitted tokens, [m] on the device of the counts."""
        self.tokens = torch.cat([self.tokens, tokens])
        self.seen[tokens] = True
        self.said.index_add_(0, tokens, torch.ones_like(tokens, dtype=self.said.dtype))


@dataclass(frozen=True)
class Barred:
    """Tokens that may not be said yet: those that end an answer which is not as long as it must be.

    rows: the numbers of the rows of a block that this holds for.
    """

    token_ids: tuple[int, ...]
    rows: tuple[int, ...]


def probabilities(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    proposed: Tensor,
    on_path: Tensor | None = None,
    barred: Barred | None = None,
) -> Tensor:
    """The distributions that tokens are drawn from: softmax of `process_logits`, [T, V], float32 or wider."""
    return process_logits(logits, params, counts, proposed, on_path, barred).softmax(-1)


def process_logits(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    proposed: Tensor,
    on_path: Tensor | None = None,
    barred: Barred | None = None,
) -> Tensor:
    """Logits [T, V] after all that `params` asks for, float32 or wider; the input
    itself where it asks for nothing.

    counts: of the text before all that is proposed; None will do unless `params.penalised`.
    proposed: [k] tokens, any of which row i may follow and its penalties then count as said.
    on_path: [T, k] bool, True where row i follows token j: its ancestors in a tree. None for a chain, where
        row i follows proposed[:i], k < T.
    barred: tokens that get no probability in some rows; None for none.

    Greedy logits are biased and penalised alone. A row keeps its largest logit, so none is empty.
    Tokens as probable as the last one kept are kept too (transformers: the same for top-k and min-p;
    for top-p its sort's order decides).
    """
    if not params.processed and barred is None:
        return logits.to(_wide(logits.dtype))
    scores = logits.to(_wide(logits.dtype), copy=True)  # everything below is in place: fresh memory of this size costs more than the arithmetic
    if params.logit_bias is not None:
        biased = torch.tensor(list(params.logit_bias), device=scores.device)
        scores[:, biased] += torch.tensor(list(params.logit_bias.values()), dtype=scores.dtype, device=scores.device)
    if params.penalised:
        assert counts is not None, "penalties need counts"
        _penalise(scores, params, counts, proposed, on_path)
    if barred is not None:
        rows, columns = (torch.tensor(numbers, dtype=torch.long, device=scores.device) for numbers in (barred.rows, barred.token_ids))
        scores[rows[:, None], columns] = -torch.inf
    if params.temperature not in (0, 1):
        scores.div_(params.temperature)
    if params.truncated:
        scores.masked_fill_(scores < _smallest_kept(scores, params), -torch.inf)
    return scores


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _penalise(scores: Tensor, params: SamplingParams, counts: TokenCounts, proposed: Tensor, on_path: Tensor | None) -> None:
    """Repetition (divide or multiply, by sign), presence and frequency penalties (subtract), in place."""
    proposed = proposed.clamp(min=0)  # by rows behind NOTHING nobody is judged
    tokens = torch.cat([counts.tokens, proposed])  # [C]; an id may repeat: all its columns are given the same value
    if on_path is None:
        read = torch.ones(len(scores), len(proposed), dtype=scores.dtype, device=scores.device).tril(-1)  # [T, k], row i: 1 for proposed[:i]
    else:
        read = on_path.to(scores.dtype)
    new = read @ (proposed[:, None] == tokens).to(scores.dtype)  # [T, C]
    said = counts.said[tokens] + new
    logits = scores[:, tokens]
    repeated = torch.where(logits < 0, logits * params.repetition_penalty, logits / params.repetition_penalty)
    logits = torch.where(counts.seen[tokens] | (new > 0), repeated, logits)
    scores[:, tokens] = logits - params.presence_penalty * (said > 0) - params.frequency_penalty * said


def _smallest_kept(scores: Tensor, params: SamplingParams) -> Tensor:
    """[T, 1]: the logit that a token must reach to survive top-k, top-p and min-p.

    Each cuts off a tail, so the highest cut decides.
    """
    top_k = params.top_k if 0 < params.top_k < scores.shape[-1] else None
    if top_k is not None:
        best = _largest(scores, top_k)
        largest, smallest = best[:, :1], best[:, -1:]
        if params.top_p < 1:
            ties = (scores >= smallest).sum(-1, keepdim=True) - top_k  # top-k keeps them, so they hold a share as well
            total = torch.logaddexp(best.logsumexp(-1, keepdim=True), smallest + ties.log())
            smallest = _nucleus_end(best, total, params.top_p)
    else:
        largest = scores.amax(-1, keepdim=True)
        smallest = _nucleus(scores, params.top_p) if params.top_p < 1 else torch.full_like(largest, -torch.inf)
    if params.min_p > 0:
        smallest = torch.maximum(smallest, largest + math.log(params.min_p))
    return smallest


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """[T, 1]: the smallest logit of the fewest most probable tokens of each row that
    hold the share `top_p` of it."""
    total = scores.logsumexp(-1, keepdim=True)
    if scores.device.type != "cpu":  # the host would have to wait for what the shortcut below asks, and sorting is fast here
        return _nucleus_end(scores.sort(descending=True).values, total, top_p)
    best = _largest(scores, min(_FEW, scores.shape[-1]))
    smallest = _nucleus_end(best, total, top_p)
    wide = (best - total).exp().sum(-1) < top_p
    if bool(wide.any()):
        # NumPy sorts floats without their indices, about ten times faster than torch.
        rising = torch.from_numpy(np.sort(scores[wide].numpy(), axis=-1))
        smallest[wide] = _nucleus_end(rising.flip(-1), total[wide], top_p)
    return smallest


def _nucleus_end(best: Tensor, total: Tensor, top_p: float) -> Tensor:
    """[T, 1]: the last logit of falling `best` [T, M] before which less than the share `top_p` of
    exp(total) has been seen."""
    share = (best - total).exp()
    before = share.cumsum(-1, dtype=torch.float64) - share
    count = (before < top_p).sum(-1, keepdim=True).clamp(min=1)  # 0 for NaN alone, which is the caller's to notice
    return best.gather(1, count - 1)


def _largest(scores: Tensor, count: int) -> Tensor:
    """[T, count]: the largest values of each row, in falling order."""
    return most_probable(scores, count)[0]


def most_probable(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest values of each row [T, V] and their tokens, in falling order: [T, count] and [T, count].

    They lie in the `count` blocks with the largest maxima, so only those are searched,
    several times faster than the row.
    """
    if scores.shape[-1] < 4 * count * _BLOCK:
        values, tokens = scores.topk(count)
        return values, tokens
    if scores.shape[-1] % _BLOCK:
        scores = F.pad(scores, (0, -scores.shape[-1] % _BLOCK), value=-torch.inf)
    blocks = scores.unflatten(-1, (-1, _BLOCK))
    chosen = blocks.amax(-1).topk(count, sorted=False).indices
    values, places = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1).topk(count)
    return values, chosen.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK


def largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row [N, V] and the first place where it stands, [N] and
    [N]; NaN, where there is one."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        rows = logits.numpy()
        places = rows.argmax(-1)  # ten times as fast as torch's
        return torch.from_numpy(rows[np.arange(len(rows)), places]), torch.from_numpy(places)
    values, indices = logits.max(-1)  # argmax is several times slower on a CPU in half precision
    return values, indices
