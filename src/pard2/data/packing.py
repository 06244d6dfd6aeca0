"""Whole documents into rows of a fixed length, so that few tokens of a row stay empty."""

import random
from bisect import bisect_left, insort
from collections.abc import Iterable

from pard2.errors import Pard2Error

_WINDOW = 4096  # documents sorted together: all of them would pack a little better, into nearly the same rows in every epoch


def pack(lengths: Iterable[int], row_length: int, seed: int) -> list[list[int]]:
    """Rows of documents, by index, each of at most `row_length` tokens; every document is in exactly one row.

    lengths: tokens of each document. Best fit, longest first, within windows of the shuffled documents; the rows, and the documents of a row,
    stand in random order. A function of its arguments alone. Raises `Pard2Error` for a document longer than a row.
    """
    sizes = [int(length) for length in lengths]
    longest = max(sizes, default=0)
    if longest > row_length:
        raise Pard2Error(f"a document has {longest} tokens, a row holds {row_length}; set data.row_length={longest} or more")
    rng = random.Random(seed)
    order = list(range(len(sizes)))
    rng.shuffle(order)
    rows: list[list[int]] = []
    for start in range(0, len(order), _WINDOW):
        rows += _best_fit(sorted(order[start : start + _WINDOW], key=lambda document: -sizes[document]), sizes, row_length)
    for row in rows:
        rng.shuffle(row)
    rng.shuffle(rows)
    return rows


def _best_fit(documents: list[int], sizes: list[int], row_length: int) -> list[list[int]]:
    """Each document into the fullest row that has room for it, or into a new one."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, row), sorted
    for document in documents:
        place = bisect_left(room, (sizes[document], -1))
        if place == len(room):
            free, number = row_length, len(rows)
            rows.append([])
        else:
            free, number = room.pop(place)
        rows[number].append(document)
        insort(room, (free - sizes[document], number))
    return rows
