"""No drafter: the target decodes alone, one token a cycle."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.engine.draft_selection import DraftSelector
from pard2.engine.draft_state import DraftState
from pard2.engine.drafters.base import Drafted, DraftRequest, PromptChunk
from pard2.engine.proposal import Proposal


class PlainDrafter:
    """Proposes nothing, ever. Every other method is compared with it."""

    feature_layers: tuple[int, ...] = ()

    def __init__(self, device: torch.device) -> None:
        self._nothing = Proposal(token_ids=torch.zeros(0, dtype=torch.long, device=device))

    def open(self, positions: int) -> DraftState | None:
        return DraftState()

    def close(self, state: DraftState) -> None:
        pass

    def limit(self, state: DraftState, length: int) -> int:
        return 0

    def prefill(self, chunks: Sequence[PromptChunk]) -> None:
        pass

    def update(self, state: DraftState, token_ids: Sequence[int], features: Tensor | None, rows: Sequence[int] | None = None) -> None:
        pass

    def propose(self, requests: Sequence[DraftRequest], selector: DraftSelector) -> Drafted:
        return Drafted([self._nothing] * len(requests), ())
