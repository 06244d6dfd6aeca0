"""Many examples in flat arrays: a list of Python integers takes ten times the memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from pard2.data.chat import Example
from pard2.data.tally import Tally


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """n examples of N tokens together.

    tokens: [N] int32. predicted: [N] bool. offsets: [n + 1] int64; example i is offsets[i] up to offsets[i + 1]. ids: n, all different.
    skipped, cut: how many more examples were too long and left out, and how many of these lost their end. notes, arguments: `counts` and
    `arguments` of a `Tally`.
    """

    tokens: np.ndarray
    predicted: np.ndarray
    offsets: np.ndarray
    ids: list[str]
    skipped: int = 0
    cut: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    arguments: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """[n] int64, tokens of each example."""
        return np.diff(self.offsets)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number = range(len(self))[index]  # negative ones and the end of iteration as in a list
        inside = slice(self.offsets[number], self.offsets[number + 1])
        return Example(self.ids[number], self.tokens[inside].tolist(), self.predicted[inside].tolist())


class ExamplesBuilder:
    """Collects examples, one by one or many at a time. skipped, cut: as in `Examples`, for who fills it to count, as with `tally`."""

    def __init__(self) -> None:
        self.skipped = self.cut = 0
        self.tally = Tally()
        self.num_tokens = 0
        self._tokens: list[np.ndarray] = []
        self._predicted: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._ids: dict[str, None] = {}
        self._repeats: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, example: Example, source: str) -> None:
        """source: tells its id from an equal one of another source."""
        self._append(np.array(example.token_ids, np.int32), np.array(example.predicted, bool), np.array([len(example.token_ids)]))
        self._name(example.id, source)

    def extend(self, examples: Examples, source: str) -> None:
        self._append(examples.tokens, examples.predicted, examples.lengths)
        self.skipped += examples.skipped
        self.cut += examples.cut
        self.tally.add(examples.notes, examples.arguments)
        for name in examples.ids:
            self._name(name, source)

    def build(self) -> Examples:
        """Raises `ValueError` if nothing was added."""
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))]).astype(np.int64)
        counts = self.skipped, self.cut, dict(self.tally.counts), self.tally.arguments
        return Examples(np.concatenate(self._tokens), np.concatenate(self._predicted), offsets, list(self._ids), *counts)

    def _append(self, tokens: np.ndarray, predicted: np.ndarray, lengths: np.ndarray) -> None:
        self._tokens.append(tokens)
        self._predicted.append(predicted)
        self._lengths.append(lengths)
        self.num_tokens += len(tokens)

    def _name(self, name: str, source: str) -> None:
        unique = name
        if name in self._ids:
            base = f"{name}@{source}"
            count = self._repeats.get(base, 0) + 1
            while (unique := base if count == 1 else f"{base}~{count}") in self._ids:
                count += 1
            self._repeats[base] = count  # else a file of equal ids would take quadratic time
        self._ids[unique] = None
