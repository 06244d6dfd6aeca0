"""What the engine knows of a drafter: it reads what each sequence says, and proposes how all of them go on.

A drafter serves every sequence of a batch, and keeps for each what it has read. It knows nothing of the
target but the hidden states that it is handed (features), and cannot change what is emitted: a bad proposal
costs time, never correctness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pard2.engine.draft_selection import DraftSelector
from pard2.engine.draft_state import DraftState
from pard2.engine.proposal import Proposal

# Tokens after which the draft reads what it has put off, so that features do not pile up.
MOST_PENDING = 512


@dataclass(frozen=True)
class PromptChunk:
    """Tokens of a prompt that the target has just read, and the target's features at these very
    tokens, [n, F], if it wants any."""

    state: DraftState
    token_ids: Sequence[int]
    features: Tensor | None


@dataclass(frozen=True)
class DraftRequest:
    """A wish for a proposal, up to `depth` >= 0 tokens deep, for one sequence.

    With none, what the draft knows is merely brought up to date where too much is pending.

    room: tokens that the text has room for before its last one, whoever proposes them; at least `depth`.
    """

    state: DraftState
    depth: int
    room: int = 0


@dataclass(frozen=True)
class Drafted:
    """proposals: one for each request. passes: tokens of each pass that the draft made."""

    proposals: list[Proposal]
    passes: tuple[int, ...]


class Drafter(Protocol):
    """One way to propose. A new one is a class like this, and a line in `engine.methods`."""

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The target's hidden states that it wants to be handed; none for `()`."""
        ...

    def open(self, positions: int) -> DraftState | None:
        """Begin to read a sequence that will be at most so long; None where there is no room now."""
        ...

    def close(self, state: DraftState) -> None:
        """Forget a sequence and free its memory."""
        ...

    def limit(self, state: DraftState, length: int) -> int:
        """How many tokens it may be asked for now, `length` tokens being there.

        Where this is 0 it is asked for none: a draft with a shorter context than its target's proposes
        nothing more there, and one that copies has found no match.
        """
        ...

    def prefill(self, chunks: Sequence[PromptChunk]) -> None:
        """Take note of the next tokens of prompts, and read what is long."""
        ...

    def update(self, state: DraftState, token_ids: Sequence[int], features: Tensor | None, rows: Sequence[int] | None = None) -> None:
        """Take note of tokens that the text goes on with: accepted ones, and the target's own.

        features: [N, F], of a pass of the target.
        rows: for each token the row of `features` at the position that said it,
            the one before it; None for rows 0, 1, ..
        """
        ...

    def propose(self, requests: Sequence[DraftRequest], selector: DraftSelector) -> Drafted:
        """Guess what follows all that the drafter was told.

        selector: takes the guesses from the draft's logits.
        """
        ...
