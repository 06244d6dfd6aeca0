"""Parallel drafting by mask tokens: PARD, and PARD-2 with or without the target's features.

The three differ only in whether features are fed (METHOD: sections 2 and 5).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.engine.drafters.base import MOST_PENDING, Ask, Choose, Proposals, Reading
from pard2.models.draft import Draft
from pard2.models.kv_cache import KVCache
from pard2.models.ragged import RaggedBatch, Segment


class ParallelDrafter:
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
        self.draft = draft
        self.cache = KVCache(draft.num_layers, positions)
        self.feature_layers = (draft.spec.target_layers or ()) if target_dependent else ()
        self._vocab_size = vocab_size
        self._last_token = draft.vocab_size - 1
        self._context_length = draft.context_length
        self._draft_tokens = draft.spec.draft_tokens
        self._mask = draft.spec.mask_token
        self._device = draft.lm.device

    def open(self, positions: int) -> Reading | None:
        extent = self.cache.reserve(min(positions, self._context_length))
        return None if extent is None else Reading(extent)

    def close(self, reading: Reading) -> None:
        assert reading.extent is not None
        self.cache.release(reading.extent)

    def limit(self, length: int) -> int:
        return max(0, min(self._draft_tokens, self._context_length - length + 1))

    def absorb(self, reading: Reading, token_ids: Sequence[int], features: Tensor | None) -> None:
        # In the wrong mode everything would still run, and merely accept less.
        if (features is None) == bool(self.feature_layers):
            raise ValueError("features belong to target-dependent drafting, and to it alone")
        assert reading.extent is not None
        if reading.closed or reading.length + len(reading.pending) + len(token_ids) > reading.extent.size:
            reading.closed = True
            reading.pending, reading.features = [], []
            return
        # A padded target vocabulary may exceed the draft's; a stand-in for such an id costs a guess, nothing else.
        reading.pending += [min(token, self._last_token) for token in token_ids]
        if features is not None:
            reading.features.append(features)

    def propose(self, asks: Sequence[Ask], choose: Choose) -> Proposals:
        segments: list[Segment] = []
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
            segments.append(Segment(reading.extent, reading.length, read + masks))
            if self.feature_layers:
                features += [*reading.features, reading.features[-1][-1:].expand(masks, -1)]
            # The masks' keys and values lie behind the new length: forgotten.
            reading.length += read
            reading.pending, reading.features = [], []
        if not rows:
            return Proposals(torch.zeros(0, dtype=torch.long, device=self._device), ())
        batch = RaggedBatch(self.cache, segments, self._device)
        token_ids = torch.tensor(rows, device=self._device)
        wanted = torch.tensor(logit_rows, device=self._device) if logit_rows else None
        logits = self.draft.run(token_ids, torch.cat(features) if features else None, batch, wanted)
        if logits is None:
            return Proposals(token_ids[:0], (len(rows),))
        return Proposals(choose(logits[:, : self._vocab_size], numbers, places), (len(rows),))
