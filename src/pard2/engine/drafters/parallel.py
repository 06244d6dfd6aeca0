"""Parallel drafting by mask tokens: PARD, and PARD-2 with or without the target's features.

The three differ only in whether features are fed (METHOD: sections 2 and 5).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.engine.drafters.base import MOST_PENDING, Ask, Choose, Proposals, Reading
from pard2.engine.drafters.model import ModelDrafter
from pard2.models.draft import Draft
from pard2.runtime.token_batch import QuerySpan, TokenBatch


class ParallelDrafter(ModelDrafter):
    """Proposes all tokens of a batch in one pass: for each sequence, the real tokens it has yet to read and k - 1 masks.

    Tokens are never shifted. Features are, by one: the real token at t comes with f[t-1], the first token with the zero
    feature, and every mask with its anchor's. Attention over these rows is plain causal, so the first guesses do
    not depend on how many masks follow.

    target_dependent: feed features (the draft must have a projection). vocab_size: the target's;
    ids from there on are never proposed. positions: of the draft's cache, for all sequences together.
    """

    sequential = False

    def __init__(self, draft: Draft, target_dependent: bool, vocab_size: int, positions: int) -> None:
        assert draft.spec is not None, "the draft has no mask token"
        super().__init__(draft, vocab_size, positions)
        self.feature_layers = (draft.spec.target_layers or ()) if target_dependent else ()
        self._draft_tokens = draft.spec.draft_tokens
        self._mask = draft.spec.mask_token

    def limit(self, length: int) -> int:
        return min(self._draft_tokens, super().limit(length))

    def absorb(self, reading: Reading, token_ids: Sequence[int], features: Tensor | None) -> None:
        # In the wrong mode everything would still run, and merely accept less.
        if (features is None) == bool(self.feature_layers):
            raise ValueError("features belong to target-dependent drafting, and to it alone")
        if self._put_off(reading, token_ids) and features is not None:
            reading.features.append(features)

    def propose(self, asks: Sequence[Ask], choose: Choose) -> Proposals:
        segments: list[QuerySpan] = []
        rows: list[int] = []
        features: list[Tensor] = []
        logit_rows: list[int] = []
        numbers: list[int] = []  # whose guess each logit row is, and which one
        places: list[int] = []
        for number, ask in enumerate(asks):
            reading, k = ask.reading, ask.k
            read = len(reading.pending)
            if k == 0 and read < MOST_PENDING:
                continue
            assert reading.extent is not None and read > 0, "absorb comes first"
            masks = max(0, k - 1)
            if k:
                logit_rows += range(len(rows) + read - 1, len(rows) + read + masks)
                numbers += [number] * k
                places += range(k)
            rows += reading.pending + [self._mask] * masks
            segments.append(QuerySpan(reading.extent, reading.length, read + masks))
            if self.feature_layers:
                features += [*reading.features, reading.features[-1][-1:].expand(masks, -1)]
            # The masks' keys and values lie behind the new length: forgotten.
            reading.length += read
            reading.pending, reading.features = [], []
        if not rows:
            return Proposals(torch.zeros(0, dtype=torch.long, device=self._device), ())
        token_ids = torch.tensor(rows, device=self._device)
        wanted = torch.tensor(logit_rows, device=self._device) if logit_rows else None
        logits = self.draft.run(TokenBatch(self.cache, segments, token_ids), torch.cat(features) if features else None, wanted)
        if logits is None:
            return Proposals(token_ids[:0], (len(rows),))
        return Proposals(choose(logits[:, : self._vocab_size], numbers, places), (len(rows),))
