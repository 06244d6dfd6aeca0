"""Tokenised conversations in flat arrays: lists of Python integers would take ten times the memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from pard2.data.tally import Tally


@dataclass(frozen=True, eq=False)
class Example:
    """L tokens to learn from. In `Examples`, both arrays are views of the whole.

    token_ids: [L] int32.
    predicted: [L] bool, True where the draft must predict the token.
    """

    id: str
    token_ids: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, name: str, token_ids: Sequence[int], predicted: Sequence[bool]) -> "Example":
        return cls(name, np.array(token_ids, np.int32), np.array(predicted, bool))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Example):
            return NotImplemented
        same_arrays = np.array_equal(self.token_ids, other.token_ids) and np.array_equal(self.predicted, other.predicted)
        return self.id == other.id and same_arrays


@dataclass(frozen=True, eq=False, kw_only=True)
class Examples(Sequence[Example]):
    """n examples of N tokens together. Nobody writes into the arrays.

    tokens: [N] int32.
    predicted: [N] bool.
    offsets: [n + 1] int64; example i is offsets[i] up to offsets[i + 1].
    ids: n, all different.
    skipped: how many more examples were too long and left out.
    cut: how many of these lost their end.
    notes: `counts` of a `Tally`.
    arguments: `arguments` of a `Tally`.
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
        return Example(self.ids[number], self.tokens[inside], self.predicted[inside])


class ExamplesBuilder:
    """Collects examples, one by one or many at a time; joins their arrays once, at the end.

    skipped, cut, tally: as in `Examples`, counted by whoever fills it.
    """

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
        self._append(example.token_ids, example.predicted, np.array([len(example.token_ids)]))
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
        return Examples(
            tokens=joined_arrays(self._tokens),
            predicted=joined_arrays(self._predicted),
            offsets=offsets_of(joined_arrays(self._lengths)),
            ids=list(self._ids),
            skipped=self.skipped,
            cut=self.cut,
            notes=dict(self.tally.counts),
            arguments=self.tally.arguments,
        )

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


def joined_arrays(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One after the other; a single one as it is, without a copy. Raises `ValueError` for none."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """[n + 1] int64, where each of n lengths begins, and the end of the last."""
    return np.concatenate([[0], lengths]).cumsum()
