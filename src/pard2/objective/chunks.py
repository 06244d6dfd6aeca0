"""The order in which the chunked loss takes the slots: whole chains, and each teacher row computed once."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pard2.objective.loss import TrainedSlots


@dataclass(frozen=True)
class Chunk:
    """C slots whose logits are held at once, in a buffer of teacher rows that lives as long as the whole pass.

    slots: [C] their indices, chain by chain. new_rows: [N] teacher rows that no chunk before needed; new_places: [N] where
    the buffer takes them in. places: [C] where the buffer holds the row of each slot.
    """

    slots: Tensor
    new_rows: Tensor
    new_places: Tensor
    places: Tensor


def plan_chunks(slots: TrainedSlots, size: int) -> tuple[list[Chunk], int]:
    """Chunks of at most `size` slots, or of one longer chain, and how many rows the buffer needs.

    Chains are taken in the order of their first teacher row. Neighbours, which begin a token apart, share most of their
    rows; a row stays in its place until the last chunk that needs it.
    """
    chain, depth, row = (tensor.cpu().numpy() for tensor in (slots.chain, slots.depth, slots.teacher_row))
    _, member, length = np.unique(chain, return_inverse=True, return_counts=True)
    first = np.full(len(length), np.iinfo(np.int64).max)
    np.minimum.at(first, member, row)
    order = np.lexsort((depth, member, first[member]))
    starts = np.flatnonzero(np.diff(member[order], prepend=-1)).tolist()

    bounds = starts[:1]
    for start, end in itertools.pairwise([*starts, len(order)]):
        if end - bounds[-1] > size and start > bounds[-1]:
            bounds.append(start)
    parts = np.split(order, bounds[1:]) if bounds else []

    last_use = {r: index for index, part in enumerate(parts) for r in row[part].tolist()}
    place: dict[int, int] = {}
    free: list[int] = []
    rows = 0
    chunks = []
    for index, part in enumerate(parts):
        needed = np.unique(row[part]).tolist()
        new = [r for r in needed if r not in place]
        for r in new:
            if not free:
                free.append(rows)
                rows += 1
            place[r] = free.pop()
        lists = part.tolist(), new, [place[r] for r in new], [place[r] for r in row[part].tolist()]
        chunks.append(Chunk(*(torch.tensor(indices, dtype=torch.long, device=slots.label.device) for indices in lists)))
        free += [place.pop(r) for r in needed if last_use[r] == index]
    return chunks, rows
