"""Vanilla speculative drafting: an ordinary small LM, one pass for each proposed token."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pard2.engine.draft_selection import DraftSelector
from pard2.engine.draft_state import DraftState
from pard2.engine.drafters.base import MOST_PENDING, Drafted, DraftRequest, PromptChunk
from pard2.engine.drafters.model import ModelDrafter
from pard2.models.draft import Draft
from pard2.runtime.token_batch import QuerySpan, TokenBatch


class AutoregressiveDrafter(ModelDrafter):
    """Continuation by the draft's LM. Target-independent; a mask token, if the draft has one, is not used."""

    feature_layers: tuple[int, ...] = ()

    def __init__(self, draft: Draft, vocab_size: int, positions: int) -> None:
        super().__init__(draft, vocab_size, positions)
        self.draft = draft

    def prefill(self, chunks: Sequence[PromptChunk]) -> None:
        for chunk in chunks:
            self._put_off(chunk.state, chunk.token_ids)
        self._pass([chunk.state for chunk in chunks if len(chunk.state.pending) >= MOST_PENDING])

    def update(self, state: DraftState, token_ids: Sequence[int], features: Tensor | None, rows: Sequence[int] | None = None) -> None:
        # Guesses that stand are in the cache already, all but the last one proposed, which was never fed.
        kept = min(len(token_ids) - 1, state.num_guessed_tokens)
        state.num_computed_tokens += kept
        state.num_guessed_tokens = 0
        self._put_off(state, token_ids[kept:])

    def propose(self, requests: Sequence[DraftRequest], selector: DraftSelector) -> Drafted:
        newest: dict[int, Tensor] = {}  # [1] each, of those that go on
        passes = []
        for depth in range(max((request.depth for request in requests), default=0) or 1):
            wanted = [n for n, request in enumerate(requests) if request.depth > depth]
            # The first pass reads what is pending, of those too that merely have too much of it.
            late = [n for n, r in enumerate(requests) if depth == 0 == r.depth and len(r.state.pending) >= MOST_PENDING]
            if not wanted + late:
                break
            fed = [requests[n].state for n in wanted + late]
            logits, count = self._pass(fed, [newest[n] for n in wanted] if newest else None, len(wanted))
            passes.append(count)
            if logits is not None:
                newest = dict(zip(wanted, selector.next(logits[:, : self._vocab_size], wanted).split(1), strict=True))
        return Drafted(selector.chains(self._device), tuple(passes))

    def _pass(self, states: Sequence[DraftState], guesses: Sequence[Tensor] | None = None, wanted: int = 0) -> tuple[Tensor | None, int]:
        """Feed each sequence what is pending, or its latest guess [1]; logits after the first `wanted` of
        them, and how many tokens were fed."""
        if not states:
            return None, 0
        spans, fed = [], []
        for number, state in enumerate(states):
            assert state.region is not None
            if guesses is not None:
                spans.append(QuerySpan(state.region, state.num_computed_tokens + state.num_guessed_tokens, 1))
                fed.append(guesses[number].clamp(min=0))  # NOTHING cannot be read, and no guess behind it counts
                state.num_guessed_tokens += 1
                continue
            assert state.pending, "update comes first"
            spans.append(QuerySpan(state.region, state.num_computed_tokens, len(state.pending)))
            fed.append(torch.tensor(state.pending, device=self._device))
            state.num_computed_tokens += len(state.pending)
            state.pending = []
        ends = list(accumulate(span.count for span in spans))
        rows = torch.tensor([end - 1 for end in ends[:wanted]], device=self._device) if wanted else None
        return self.draft.run(TokenBatch(self.cache, spans, torch.cat(fed)), None, rows), ends[-1]
