"""A match before the draft: where the text repeats itself it is copied, and the draft is not asked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.engine.draft_selection import DraftSelector
from pard2.engine.draft_state import DraftState
from pard2.engine.drafters.base import Drafted, Drafter, DraftRequest, PromptChunk
from pard2.engine.drafters.ngram import copies, index_of
from pard2.engine.ngrams import NgramIndex


class NgramFirst:
    """Another drafter, which proposes only for texts whose last tokens are new.

    The others are continued as after the latest earlier occurrence of these tokens. What the draft does not
    read meanwhile it reads with its next proposal.

    first: tokens of a match that is continued by `most` tokens.
    shortest: of one that is continued at all, by at most `cap`.
    """

    def __init__(self, drafter: Drafter, *, first: int, shortest: int, cap: int, most: int, device: torch.device) -> None:
        self._drafter = drafter
        self._first, self._shortest = first, shortest
        self._cap, self._most = min(cap, most), most
        self._device = device

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self._drafter.feature_layers

    def open(self, positions: int) -> DraftState | None:
        state = self._drafter.open(positions)
        if state is not None:
            state.ngrams = NgramIndex(self._shortest, self._first)
        return state

    def close(self, state: DraftState) -> None:
        self._drafter.close(state)

    def limit(self, state: DraftState, length: int) -> int:
        return 0 if index_of(state).match else self._drafter.limit(state, length)

    def prefill(self, chunks: Sequence[PromptChunk]) -> None:
        for chunk in chunks:
            index_of(chunk.state).read(chunk.token_ids)
        self._drafter.prefill(chunks)

    def update(self, state: DraftState, token_ids: Sequence[int], features: Tensor | None, rows: Sequence[int] | None = None) -> None:
        index_of(state).read(token_ids)
        self._drafter.update(state, token_ids, features, rows)

    def propose(self, requests: Sequence[DraftRequest], selector: DraftSelector) -> Drafted:
        copied = copies([(request.state, self._count(request)) for request in requests], self._device)
        drafted = self._drafter.propose(requests, selector)
        both = zip(copied, drafted.proposals, strict=True)
        return Drafted([copy if copy.num_nodes else proposal for copy, proposal in both], drafted.passes)

    def _count(self, request: DraftRequest) -> int:
        """Tokens to copy."""
        most = self._most if index_of(request.state).match >= self._first else self._cap
        return min(most, request.room)
