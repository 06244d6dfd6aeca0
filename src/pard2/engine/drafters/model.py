"""What drafters with a model of their own share: its cache, and how far it has read each sequence."""

from collections.abc import Sequence

from pard2.engine.draft_state import DraftState
from pard2.models.any_draft import AnyDraft
from pard2.runtime.kv_cache import KVCache


class ModelDrafter:
    """A draft's pasts of all sequences in one cache.

    vocab_size: the target's; ids from there on are never proposed.
    positions: of the draft's cache, for all sequences together.
    spare: places that each sequence has beside those of its text, for guesses.
    """

    def __init__(self, draft: AnyDraft, vocab_size: int, positions: int, spare: int = 0) -> None:
        self._spare = spare
        self.cache = KVCache(draft.num_layers, positions)
        self._vocab_size = vocab_size
        self._last_token = draft.vocab_size - 1
        self._context_length = draft.context_length
        self._device = draft.device

    def open(self, positions: int) -> DraftState | None:
        region = self.cache.reserve(min(positions, self._context_length) + self._spare)
        return None if region is None else DraftState(region=region)

    def close(self, state: DraftState) -> None:
        assert state.region is not None
        self.cache.release(state.region)

    def limit(self, state: DraftState, length: int) -> int:
        return max(0, self._context_length - length + 1)

    def _put_off(self, state: DraftState, token_ids: Sequence[int]) -> bool:
        """Note tokens to be read with the next proposal.

        False where the text has outgrown the draft, which then reads no further.
        """
        assert state.region is not None
        if state.closed or state.num_computed_tokens + len(state.pending) + len(token_ids) > state.region.size - self._spare:
            state.closed = True
            state.pending, state.features, state.last_feature = [], [], None
            return False
        # A padded target vocabulary may exceed the draft's; a stand-in for such an id
        # costs a guess, nothing else.
        state.pending += [min(token, self._last_token) for token in token_ids]
        return True
