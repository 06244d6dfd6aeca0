"""What drafters with a model of their own share: its cache, and how far it has read each sequence."""

from collections.abc import Sequence

from pard2.engine.drafters.base import Reading
from pard2.models.draft import Draft
from pard2.runtime.kv_cache import KVCache


class ModelDrafter:
    """A draft's LM and the pasts of all sequences in one cache of `positions` positions.

    vocab_size: the target's; ids from there on are never proposed.
    """

    def __init__(self, draft: Draft, vocab_size: int, positions: int) -> None:
        self.draft = draft
        self.cache = KVCache(draft.num_layers, positions)
        self._vocab_size = vocab_size
        self._last_token = draft.vocab_size - 1
        self._context_length = draft.context_length
        self._device = draft.lm.device

    def open(self, positions: int) -> Reading | None:
        extent = self.cache.reserve(min(positions, self._context_length))
        return None if extent is None else Reading(extent)

    def close(self, reading: Reading) -> None:
        assert reading.extent is not None
        self.cache.release(reading.extent)

    def limit(self, length: int) -> int:
        return max(0, self._context_length - length + 1)

    def _put_off(self, reading: Reading, token_ids: Sequence[int]) -> bool:
        """Note tokens to be read with the next proposal. False where the text has outgrown the draft, which then reads no further."""
        assert reading.extent is not None
        if reading.closed or reading.length + len(reading.pending) + len(token_ids) > reading.extent.size:
            reading.closed = True
            reading.pending, reading.features = [], []
            return False
        # A padded target vocabulary may exceed the draft's; a stand-in for such an id costs a guess, nothing else.
        reading.pending += [min(token, self._last_token) for token in token_ids]
        return True
