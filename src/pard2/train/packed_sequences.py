"""Which documents make a row, and which rows make a step: a function of the seed alone, so that it needs no state."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pard2.config import ObjectiveConfig
from pard2.data.chat import Example
from pard2.data.packing import pack
from pard2.train.state import generator
from pard2.train.step import PackedSequence, lay_out

# Kinds of places that random numbers are drawn at.
_ORDER, _ROW, DROPOUT = range(3)


class Rows:
    """Documents packed once; their rows come in a new order in every epoch."""

    def __init__(
        self,
        examples: Sequence[Example],
        lengths: Iterable[int],
        row_length: int,
        objective: ObjectiveConfig,
        seed: int,
        places: Tensor | None = None,
    ) -> None:
        """lengths: tokens of each document. places: as for `lay_out`. Raises `Pard2Error` for a document longer than `row_length`."""
        self.packed = pack(lengths, row_length, seed)
        self._examples, self._objective, self._seed = examples, objective, seed
        self._places = None if places is None else places.cpu()
        self._order = lru_cache(maxsize=2)(self._permutation)  # a step may span two epochs

    def __len__(self) -> int:
        return len(self.packed)

    def _permutation(self, epoch: int) -> list[int]:
        return torch.randperm(len(self), generator=generator(self._seed, _ORDER, epoch)).tolist()

    def row(self, number: int) -> PackedSequence:
        """PackedSequence `number`, counted from 0 over all epochs, laid out on the CPU."""
        epoch, place = divmod(number, len(self))
        documents = [self._examples[i] for i in self.packed[self._order(epoch)[place]]]
        return lay_out(documents, self._objective, generator(self._seed, _ROW, number), self._places)
