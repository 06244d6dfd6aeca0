"""Prompt lookup: what followed the text's last tokens when they stood there before. No model, no training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.engine.draft_selection import DraftSelector
from pard2.engine.draft_state import DraftState
from pard2.engine.drafters.base import Drafted, DraftRequest, PromptChunk
from pard2.engine.ngrams import NgramIndex
from pard2.engine.proposal import Proposal


class NgramDrafter:
    """Copies from prompt and answer so far; proposes nothing where the text's end is new.

    shortest, longest: tokens of a match. most: of a proposal.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(self, shortest: int, longest: int, most: int, device: torch.device) -> None:
        self._shortest, self._longest, self._most = shortest, longest, most
        self._device = device

    def open(self, positions: int) -> DraftState | None:
        return DraftState(ngrams=NgramIndex(self._shortest, self._longest))

    def close(self, state: DraftState) -> None:
        pass

    def limit(self, state: DraftState, length: int) -> int:
        return self._most if index_of(state).match else 0

    def prefill(self, chunks: Sequence[PromptChunk]) -> None:
        for chunk in chunks:
            index_of(chunk.state).read(chunk.token_ids)

    def update(self, state: DraftState, token_ids: Sequence[int], features: Tensor | None, rows: Sequence[int] | None = None) -> None:
        index_of(state).read(token_ids)

    def propose(self, requests: Sequence[DraftRequest], selector: DraftSelector) -> Drafted:
        proposals = copies([(request.state, request.depth) for request in requests], self._device)
        tokens = sum(proposal.num_nodes for proposal in proposals)
        # A look-up counts as a pass: `auto` learns from its time that it costs next to nothing.
        return Drafted(proposals, (tokens,) if tokens else ())


def copies(wanted: Sequence[tuple[DraftState, int]], device: torch.device) -> list[Proposal]:
    """For each state a chain of so many tokens that continue its match; an empty one without a match.

    No q comes with them: they depend on the text so far alone, as a draft's first choices do, and are
    judged by the same rule whatever the options say of drawn ones (METHOD: section 6).
    """
    found = [index_of(state).continuation(count) for state, count in wanted]
    token_ids = torch.tensor([token for tokens in found for token in tokens], dtype=torch.long, device=device)
    return [Proposal(token_ids=part) for part in token_ids.split([len(tokens) for tokens in found])]


def index_of(state: DraftState) -> NgramIndex:
    """The text of a state that was opened with one."""
    assert state.ngrams is not None
    return state.ngrams
