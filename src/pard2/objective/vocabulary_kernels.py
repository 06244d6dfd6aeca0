"""The functions of `vocabulary`, compiled for the CPU by numba, in float32.

A tensor operation over C rows of logits streams all of them from memory, and a dozen are needed. Here each
row is processed from its maximum to its overlap while it lies in a core's own cache. The rows are divided
among as many threads as torch uses; numba's own threads would compete with torch's for the cores.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pard2.kernels.elementwise import compiled, exp
from pard2.objective.vocabulary import RowStatistics

Array = np.ndarray

_LANES = 32  # running maxima side by side: NaN forbids reordering comparisons, so one alone would not be vectorised
_TASK_ROWS = 8


def store_softmax(logits: Tensor, p: Tensor, rows: Tensor) -> Tensor:
    """See `vocabulary.store_softmax`."""
    negative_entropy = torch.empty(len(logits))
    arrays = _arrays(logits.float(), p, rows, negative_entropy)
    _share_out(len(logits), lambda begin, end: _store_softmax(begin, end, *arrays))
    return negative_entropy


def softmax_(logits: Tensor, p: Tensor, rows: Tensor, label: Tensor) -> RowStatistics:
    """See `vocabulary.softmax_`."""
    found = torch.empty(5, len(logits))
    arrays = _arrays(logits, p, rows, label, found)
    _share_out(len(logits), lambda begin, end: _softmax(begin, end, *arrays))
    return RowStatistics(found[0] > 0, *found[1:])


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
    """See `vocabulary.gradient_`."""
    below = torch.zeros_like(q_factor) if below_factor is None else below_factor
    arrays = _arrays(q, p, rows, label, torch.stack([q_factor, p_factor, label_factor, below]))
    _share_out(len(q), lambda begin, end: _gradient(begin, end, *arrays))


def _arrays(*tensors: Tensor) -> list[Array]:
    return [tensor.detach().numpy() for tensor in tensors]


def _share_out(rows: int, work: Callable[[int, int], None]) -> None:
    """work(begin, end) over all rows, in threads; the kernels hold no lock while they run."""
    if torch.get_num_threads() == 1:
        return work(0, rows)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(lambda begin: work(begin, min(begin + _TASK_ROWS, rows)), range(0, rows, _TASK_ROWS)):
            pass


@compiled
def _highest(row: Array) -> np.float32:
    lanes = np.full(_LANES, -np.inf, np.float32)
    whole = len(row) - len(row) % _LANES
    for at in range(0, whole, _LANES):
        for i in range(_LANES):
            lanes[i] = row[at + i] if row[at + i] > lanes[i] else lanes[i]
    highest = np.float32(-np.inf)
    for i in range(_LANES):
        highest = max(highest, lanes[i])
    for i in range(whole, len(row)):
        highest = max(highest, row[i])
    return highest


@compiled
def _store_softmax(begin: int, end: int, logits: Array, p: Array, rows: Array, negative_entropy: Array) -> None:
    for n in range(begin, end):
        row, out = logits[n], p[rows[n]]
        highest = _highest(row)
        total, dot = np.float32(0), np.float32(0)
        for v in range(len(row)):
            shifted = row[v] - highest
            out[v] = exp(shifted)
            total += out[v]
            dot += out[v] * shifted
        for v in range(len(row)):
            out[v] /= total
        negative_entropy[n] = dot / total - np.log(total)


@compiled
def _softmax(begin: int, end: int, logits: Array, p: Array, rows: Array, label: Array, found: Array) -> None:
    """found: [5, C], the fields of `RowStatistics` in their order."""
    correct, label_logprob, cross, overlap, below = found
    for s in range(begin, end):
        row, p_row, data = logits[s], p[rows[s]], label[s]
        highest = _highest(row)
        label_shifted = row[data] - highest
        correct[s] = label_shifted == 0
        if correct[s]:
            for v in range(data):  # of equal logits the first is chosen
                if row[v] == highest:
                    correct[s] = False
        total, dot = np.float32(0), np.float32(0)
        for v in range(len(row)):
            shifted = row[v] - highest
            row[v] = exp(shifted)
            total += row[v]
            dot += p_row[v] * shifted
        log_total, share = np.log(total), np.float32(1) / total
        label_logprob[s] = label_shifted - log_total
        cross[s] = dot - log_total
        common, under = np.float32(0), np.float32(0)
        for v in range(len(row)):
            row[v] *= share
            is_below = row[v] < p_row[v]
            common += row[v] if is_below else p_row[v]
            under += row[v] if is_below else np.float32(0)
        overlap[s], below[s] = common, under


@compiled
def _gradient(begin: int, end: int, q: Array, p: Array, rows: Array, label: Array, factors: Array) -> None:
    """factors: [4, C], of q, of p, of the label, and of q where q < p."""
    q_factor, p_factor, label_factor, below_factor = factors
    for s in range(begin, end):
        row, p_row = q[s], p[rows[s]]
        above, below, of_p = q_factor[s], q_factor[s] + below_factor[s], p_factor[s]
        for v in range(len(row)):
            row[v] = row[v] * (below if row[v] < p_row[v] else above) - p_row[v] * of_p
        row[label[s]] += label_factor[s]
