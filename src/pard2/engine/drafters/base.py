"""What the engine knows of a drafter: it reads what each sequence says, and guesses how all of them go on.

A drafter serves every sequence of a batch, and keeps for each what it has read. It knows nothing of the target but the
features that it is handed, and cannot change what is emitted: a bad proposal costs time, never correctness.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pard2.runtime.kv_cache import CacheRegion

# Rows after which the draft reads what it has put off, so that features do not pile up.
MOST_PENDING = 512


@dataclass
class Reading:
    """How far the draft has read one sequence.

    extent: its part of the draft's cache; None for a drafter without one. length: positions of it that hold tokens known to be in the
    text. guessed: positions behind them that hold the draft's own guesses. pending: tokens that it has yet to read, with
    their features, chunk by chunk. closed: the text has outgrown the draft, which reads no further.
    """

    extent: CacheRegion | None
    length: int = 0
    guessed: int = 0
    pending: list[int] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    closed: bool = False


@dataclass(frozen=True)
class Ask:
    """A wish for k >= 0 tokens of one sequence; with none, its reading is merely brought up to date where too much is pending."""

    reading: Reading
    k: int


@dataclass(frozen=True)
class Proposals:
    """token_ids: guesses (or NOTHING) for all asks, one ask after the other, [sum of k]. passes: rows of each pass that the draft made."""

    token_ids: Tensor
    passes: tuple[int, ...]

    def of(self, asks: Sequence[Ask]) -> tuple[Tensor, ...]:
        """Each ask's [k]."""
        return torch.split(self.token_ids, [ask.k for ask in asks])


# Turns a draft's logits [R, vocabulary] into tokens [R], or NOTHING; row r is guess number `places[r]` of ask number `asks[r]`.
Choose = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]


class Drafter(Protocol):
    """Feature rows are the target's, at the position BEFORE the token they come with."""

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The target's hidden states that it wants to be handed; none for `()`."""
        ...

    @property
    def sequential(self) -> bool:
        """True where every further guess costs a pass."""
        ...

    def open(self, positions: int) -> Reading | None:
        """Begin to read a sequence that will be at most so long; None where there is no room now."""
        ...

    def close(self, reading: Reading) -> None:
        """Forget a sequence and free its memory."""
        ...

    def limit(self, length: int) -> int:
        """How many tokens it can propose after `length` tokens, at most; never grows with `length`.

        Where this is 0 the drafter is not asked, so a draft with a shorter context than its target's
        falls silent there and the target goes on alone.
        """
        ...

    def absorb(self, reading: Reading, token_ids: Sequence[int], features: Tensor | None) -> None:
        """Take note of tokens that the text goes on with: of the prompt, accepted ones, the target's own.

        features: [len(token_ids), F], row i the target's at the position before token i, zero before the first.
        """
        ...

    def propose(self, asks: Sequence[Ask], choose: Choose) -> Proposals:
        """Guess the tokens that follow everything absorbed. choose: takes each guess from its logits."""
        ...
