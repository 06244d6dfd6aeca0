"""Parallel drafting by mask tokens: PARD, and PARD-2 with or without the target's features.

The three differ only in whether features are fed (METHOD: sections 2 and 5).
"""

import torch
from torch import Tensor

from pard2.engine.drafters.base import Proposal
from pard2.models.cache import KVCache
from pard2.models.draft import Draft


class ParallelDrafter:
    """Proposes k tokens in one pass over [the real tokens that its cache lacks, k - 1 masks].

    Tokens are never shifted. Features are, by one: the real token at t comes with f[t-1], the first token with the zero
    feature, and every mask with its anchor's. Attention over this row is plain causal, so the first guesses do
    not depend on how many masks follow.

    target_dependent: feed features (the draft must have a projection). vocab_size: the target's;
    ids from there on are never proposed. capacity: positions to make room for at first.
    """

    def __init__(self, draft: Draft, target_dependent: bool, vocab_size: int, capacity: int) -> None:
        assert draft.spec is not None, "the draft has no mask token"
        self.draft = draft
        self.cache = KVCache(draft.num_layers, capacity)
        self.feature_layers = (draft.spec.target_layers or ()) if target_dependent else ()
        self._vocab_size = vocab_size
        self._context_length: int = draft.config.max_position_embeddings
        self._draft_tokens = draft.spec.draft_tokens
        self._masks = torch.full((1, self._draft_tokens - 1), draft.spec.mask_token, device=draft.lm.device)
        self._pending: Tensor | None = None  # [1, m] real tokens that the cache lacks
        self._features: Tensor | None = None  # [1, m, F], the feature that belongs to each of them

    def limit(self, length: int) -> int:
        return max(0, min(self._draft_tokens, self._context_length - length + 1))

    def prefill(self, token_ids: Tensor, features: Tensor | None) -> None:
        self._check(features)
        if features is not None:
            features = torch.cat([torch.zeros_like(features[:, :1]), features[:, :-1]], dim=1)
        self.draft.forward(self._known(token_ids), features, self.cache, num_logits=1)

    def absorb(self, token_ids: Tensor, features: Tensor | None) -> None:
        self._check(features)
        self._pending = self._known(token_ids)
        self._features = features

    def propose(self, k: int) -> Proposal:
        assert self._pending is not None, "absorb comes first"
        masks = self._masks[:, : k - 1]
        token_ids = torch.cat([self._pending, masks], dim=1)
        features = self._features
        if features is not None:
            anchor = features[:, -1:].expand(-1, masks.shape[1], -1)
            features = torch.cat([features, anchor], dim=1)
        logits = self.draft.forward(token_ids, features, self.cache, num_logits=k)
        self.cache.truncate(self.cache.length - masks.shape[1])
        return Proposal(logits[..., : self._vocab_size].argmax(-1))

    def _check(self, features: Tensor | None) -> None:
        # In the wrong mode everything would still run, and merely accept less.
        if (features is None) == bool(self.feature_layers):
            raise ValueError("features belong to target-dependent drafting, and to it alone")

    def _known(self, token_ids: Tensor) -> Tensor:
        # A padded target vocabulary may exceed the draft's; a stand-in for such an id costs a guess, nothing else.
        return token_ids.clamp(max=self.draft.vocab_size - 1)
