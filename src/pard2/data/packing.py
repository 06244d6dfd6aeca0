"""Whole documents into packed sequences of a fixed length, so that few of their tokens stay empty."""

import random
from bisect import bisect_left, insort
from collections.abc import Iterable

from pard2.errors import Pard2Error

_WINDOW = 4096  # documents sorted together: all of them would pack a little better, but depend little on the seed


def pack(lengths: Iterable[int], max_length: int, seed: int) -> list[list[int]]:
    """Packed sequences of at most `max_length` tokens, each a list of documents by index.

    Best fit, longest first, within windows of the shuffled documents; the sequences, and the documents of a
    sequence, stand in random order. Every document is in one. A function of its arguments alone.

    lengths: tokens of each document.

    Raises `Pard2Error` for a document longer than a sequence.
    """
    sizes = [int(length) for length in lengths]
    longest = max(sizes, default=0)
    if longest > max_length:
        raise Pard2Error(f"a document has {longest} tokens, a row holds {max_length}; set data.row_length={longest} or more")
    rng = random.Random(seed)
    order = list(range(len(sizes)))
    rng.shuffle(order)
    sequences: list[list[int]] = []
    for start in range(0, len(order), _WINDOW):
        sequences += _best_fit(sorted(order[start : start + _WINDOW], key=lambda document: -sizes[document]), sizes, max_length)
    for sequence in sequences:
        rng.shuffle(sequence)
    rng.shuffle(sequences)
    return sequences


def _best_fit(documents: list[int], sizes: list[int], max_length: int) -> list[list[int]]:
    """Each document into the fullest sequence that has room for it, or into a new one."""
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, sequence), sorted
    for document in documents:
        fullest = bisect_left(room, (sizes[document], -1))
        if fullest == len(room):
            free, number = max_length, len(sequences)
            sequences.append([])
        else:
            free, number = room.pop(fullest)
        sequences[number].append(document)
        insort(room, (free - sizes[document], number))
    return sequences
