"""The order in which the chunked loss takes the slots: whole chains, each teacher row computed once."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pard2.objective.loss import TrainedSlots


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """C slots whose logits are held at once, beside a buffer of teacher rows that lasts for the whole pass.

    slots: [C] their indices, chain by chain.
    new_teacher_rows: [N] rows of the teacher that no earlier chunk needed.
    new_buffer_rows: [N] where the buffer stores them.
    buffer_rows: [C] where the buffer holds the row of each slot.
    """

    slots: Tensor
    new_teacher_rows: Tensor
    new_buffer_rows: Tensor
    buffer_rows: Tensor


def plan_chunks(slots: TrainedSlots, size: int) -> tuple[list[Chunk], int]:
    """Chunks of at most `size` slots, or of one longer chain, and how many rows the buffer needs.

    Chains are taken in the order of their first teacher row. Neighbours, which begin a token apart, share
    most of their rows; a row stays in the buffer until the last chunk that needs it.
    """

    def indices(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=slots.label.device)

    row = slots.teacher_row.cpu().numpy()
    parts = _whole_chains(slots.chain.cpu().numpy(), slots.depth.cpu().numpy(), row, size)
    last_use = {r: index for index, part in enumerate(parts) for r in row[part].tolist()}
    stored: dict[int, int] = {}  # the buffer's row of each teacher row
    free: list[int] = []
    rows = 0
    chunks = []
    for index, part in enumerate(parts):
        needed = np.unique(row[part]).tolist()
        new = [r for r in needed if r not in stored]
        for r in new:
            if not free:
                free.append(rows)
                rows += 1
            stored[r] = free.pop()
        chunks.append(
            Chunk(
                slots=indices(part.tolist()),
                new_teacher_rows=indices(new),
                new_buffer_rows=indices([stored[r] for r in new]),
                buffer_rows=indices([stored[r] for r in row[part].tolist()]),
            )
        )
        free += [stored.pop(r) for r in needed if last_use[r] == index]
    return chunks, rows


def _whole_chains(chain: np.ndarray, depth: np.ndarray, row: np.ndarray, size: int) -> list[np.ndarray]:
    """Indices of slots, in groups of whole chains."""
    _, member, length = np.unique(chain, return_inverse=True, return_counts=True)
    first = np.full(len(length), np.iinfo(np.int64).max)
    np.minimum.at(first, member, row)
    order = np.lexsort((depth, member, first[member]))
    starts = np.flatnonzero(np.diff(member[order], prepend=-1)).tolist()
    bounds = starts[:1]
    for start, end in itertools.pairwise([*starts, len(order)]):
        if end - bounds[-1] > size and start > bounds[-1]:
            bounds.append(start)
    return np.split(order, bounds[1:]) if bounds else []
