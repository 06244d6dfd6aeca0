"""Vanilla speculative drafting: an ordinary small LM, one pass for each proposed token."""

import torch
from torch import Tensor

from pard2.engine.drafters.base import Proposal
from pard2.models.cache import KVCache
from pard2.models.draft import Draft


class AutoregressiveDrafter:
    """Greedy continuation by the draft's LM. Target-independent; a mask token, if the draft has one, is not used.

    vocab_size: the target's; ids from there on are never proposed. capacity: positions to make room for at first.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(self, draft: Draft, vocab_size: int, capacity: int) -> None:
        self.draft = draft
        self.cache = KVCache(draft.num_layers, capacity)
        self._vocab_size = vocab_size
        self._context_length: int = draft.config.max_position_embeddings
        self._real = 0  # positions of the cache that hold tokens known to be in the text; the rest are its own guesses
        self._pending: Tensor | None = None  # [1, m] real tokens that the cache lacks

    def limit(self, length: int) -> int:
        return max(0, self._context_length - length + 1)

    def prefill(self, token_ids: Tensor, features: Tensor | None) -> None:
        self.draft.forward(self._known(token_ids), None, self.cache, num_logits=1)
        self._real = self.cache.length

    def absorb(self, token_ids: Tensor, features: Tensor | None) -> None:
        # Accepted guesses are in the cache already, all but the last one proposed, which was never fed.
        kept = min(token_ids.shape[1] - 1, self.cache.length - self._real)
        self._real += kept
        self.cache.truncate(self._real)
        self._pending = self._known(token_ids[:, kept:])

    def propose(self, k: int) -> Proposal:
        tokens = self._pending
        assert tokens is not None, "absorb comes first"
        self._real += tokens.shape[1]
        guesses = []
        for _ in range(k):
            logits = self.draft.forward(tokens, None, self.cache, num_logits=1)
            tokens = logits[..., : self._vocab_size].argmax(-1)
            guesses.append(tokens)
        return Proposal(torch.cat(guesses, dim=1))

    def _known(self, token_ids: Tensor) -> Tensor:
        # A padded target vocabulary may exceed the draft's; a stand-in for such an id costs a guess, nothing else.
        return token_ids.clamp(max=self.draft.vocab_size - 1)
