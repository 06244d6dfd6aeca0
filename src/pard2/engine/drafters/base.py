"""What the engine knows of a drafter: it reads the prompt, proposes, and learns what became of it.

A drafter serves one sequence. It knows nothing of the target but the features that it is handed,
and cannot change what is emitted: a bad proposal costs time, never correctness.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """Guesses for the next k tokens. token_ids: [1, k], on the drafter's device."""

    token_ids: Tensor


class Drafter(Protocol):
    """One sequence's drafter. Feature rows are the target's, at the position BEFORE the token they come with."""

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The target's hidden states that it wants to be handed; none for `()`."""
        ...

    def limit(self, length: int) -> int:
        """How many tokens it can propose after `length` tokens, at most; never grows with `length`.

        Where this is 0 the drafter is not asked, so a draft with a shorter context than its target's
        falls silent there and the target goes on alone.
        """
        ...

    def prefill(self, token_ids: Tensor, features: Tensor | None) -> None:
        """Read the prompt. token_ids: [1, P]. features: [1, P, F], row t the target's at position t."""
        ...

    def absorb(self, token_ids: Tensor, features: Tensor | None) -> None:
        """Take in what was emitted since the last proposal (or the prompt): its accepted tokens and the target's own.

        token_ids: [1, m], m >= 1. features: [1, m, F], row i the target's at the position before token i.
        """
        ...

    def propose(self, k: int) -> Proposal:
        """Guess the k >= 1 tokens that follow everything absorbed."""
        ...
