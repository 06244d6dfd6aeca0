"""Parallel drafting by mask tokens: PARD, and PARD-2 with or without the target's features.

The three differ only in whether features are fed (METHOD: sections 2 and 5).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.engine.draft_selection import DraftSelector
from pard2.engine.draft_state import DraftState
from pard2.engine.drafters.base import MOST_PENDING, Drafted, DraftRequest, PromptChunk
from pard2.engine.drafters.features import FeatureDrafter
from pard2.models.draft import Draft
from pard2.runtime.token_batch import QuerySpan, TokenBatch


class ParallelDrafter(FeatureDrafter):
    """Proposes all tokens of a batch in one pass: for each sequence, the real tokens it has yet
    to read and depth - 1 masks.

    Tokens are never shifted. Features are, by one: the real token at t comes with f[t-1], the first token
    with the zero feature, and every mask with its anchor's. Attention in this pass is plain causal, so the
    first guesses do not depend on how many masks follow.

    target_dependent: feed features (the draft must have a projection).
    """

    def __init__(self, draft: Draft, target_dependent: bool, vocab_size: int, positions: int) -> None:
        assert draft.spec is not None, "the draft has no mask token"
        super().__init__(draft, vocab_size, positions)
        self.draft = draft
        self.feature_layers = (draft.spec.target_layers or ()) if target_dependent else ()
        self._draft_tokens = draft.spec.draft_tokens
        self._mask = draft.spec.mask_token

    def limit(self, state: DraftState, length: int) -> int:
        return min(self._draft_tokens, super().limit(state, length))

    def prefill(self, chunks: Sequence[PromptChunk]) -> None:
        for state, token_ids, features in ((chunk.state, chunk.token_ids, chunk.features) for chunk in chunks):
            before = None
            if features is not None:
                first = torch.zeros_like(features[:1]) if state.last_feature is None else state.last_feature
                before = torch.cat([first, features[:-1]])
                state.last_feature = features[-1:]
            self.update(state, token_ids, before)
        self._pass([DraftRequest(chunk.state, 0) for chunk in chunks])

    def propose(self, requests: Sequence[DraftRequest], selector: DraftSelector) -> Drafted:
        logits, passes = self._pass(requests)
        counts = [request.depth for request in requests]
        if logits is None:
            logits = torch.zeros(0, self._vocab_size, device=self._device)
        return Drafted(selector.parallel(logits[:, : self._vocab_size], counts), passes)

    def _pass(self, requests: Sequence[DraftRequest]) -> tuple[Tensor | None, tuple[int, ...]]:
        """Read what is pending, and `depth` - 1 masks behind it; logits [sum of depths, vocabulary], and the
        tokens of the pass made, if any."""
        spans: list[QuerySpan] = []
        tokens: list[int] = []
        features: list[tuple[Tensor, Sequence[int]]] = []
        logit_rows: list[int] = []
        for state, depth in ((request.state, request.depth) for request in requests):
            read = len(state.pending)
            if depth == 0 and read < MOST_PENDING:
                continue
            assert state.region is not None and read > 0, "update comes first"
            masks = max(0, depth - 1)
            if depth:
                logit_rows += range(len(tokens) + read - 1, len(tokens) + read + masks)
            tokens += state.pending + [self._mask] * masks
            spans.append(QuerySpan(state.region, state.num_computed_tokens, read + masks))
            if self.feature_layers:
                matrix, rows = state.features[-1]
                features += [*state.features, (matrix, [rows[-1]] * masks)]
            # The masks' keys and values lie behind the tokens computed: forgotten.
            state.num_computed_tokens += read
            state.pending, state.features = [], []
        if not tokens:
            return None, ()
        batch = TokenBatch(self.cache, spans, torch.tensor(tokens, device=self._device))
        wanted = torch.tensor(logit_rows, device=self._device) if logit_rows else None
        return self.draft.run(batch, self._gathered(features) if features else None, wanted), (len(tokens),)
