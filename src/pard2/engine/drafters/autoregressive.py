"""Vanilla speculative drafting: an ordinary small LM, one pass for each proposed token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.engine.drafters.base import MOST_PENDING, Ask, Choose, Proposals, Reading
from pard2.models.draft import Draft
from pard2.models.kv_cache import KVCache
from pard2.models.ragged import RaggedBatch, Segment


class AutoregressiveDrafter:
    """Continuation by the draft's LM. Target-independent; a mask token, if the draft has one, is not used.

    vocab_size: the target's; ids from there on are never proposed. positions: of the draft's cache, for all sequences together.
    """

    feature_layers: tuple[int, ...] = ()
    sequential = True

    def __init__(self, draft: Draft, vocab_size: int, positions: int) -> None:
        self.draft = draft
        self.cache = KVCache(draft.num_layers, positions)
        self._vocab_size = vocab_size
        self._device = draft.lm.device

    def open(self, positions: int) -> Reading | None:
        extent = self.cache.reserve(min(positions, self.draft.context_length))
        return None if extent is None else Reading(extent)

    def close(self, reading: Reading) -> None:
        assert reading.extent is not None
        self.cache.release(reading.extent)

    def limit(self, length: int) -> int:
        return max(0, self.draft.context_length - length + 1)

    def absorb(self, reading: Reading, token_ids: Sequence[int], features: Tensor | None) -> None:
        assert reading.extent is not None
        # Guesses that stand are in the cache already, all but the last one proposed, which was never fed.
        kept = min(len(token_ids) - 1, reading.guessed)
        reading.length += kept
        reading.guessed = 0
        if reading.closed or reading.length + len(reading.pending) + len(token_ids) - kept > reading.extent.size:
            reading.closed = True
            reading.pending = []
            return
        # A padded target vocabulary may exceed the draft's; a stand-in for such an id costs a guess, nothing else.
        reading.pending += [min(token, self.draft.vocab_size - 1) for token in token_ids[kept:]]

    def propose(self, asks: Sequence[Ask], choose: Choose) -> Proposals:
        asked = [number for number, ask in enumerate(asks) if ask.k or len(ask.reading.pending) >= MOST_PENDING]
        if not asked:
            return Proposals(torch.zeros(0, dtype=torch.long, device=self._device), ())
        rows = [token for number in asked for token in asks[number].reading.pending]
        tokens = torch.tensor(rows, device=self._device)
        segments, ends = [], []
        for number in asked:
            reading = asks[number].reading
            assert reading.extent is not None and reading.pending, "absorb comes first"
            segments.append(Segment(reading.extent, reading.length, len(reading.pending)))
            reading.length += len(reading.pending)
            reading.pending = []
            ends.append(sum(segment.count for segment in segments) - 1)
        guesses: list[list[Tensor]] = [[] for _ in asks]
        passes = []
        for place in range(max(1, *(asks[number].k for number in asked))):
            going = [number for number in asked if asks[number].k > place]
            if place > 0:
                segments = []
                for number in going:
                    reading = asks[number].reading
                    assert reading.extent is not None
                    segments.append(Segment(reading.extent, reading.length + reading.guessed, 1))
                    reading.guessed += 1
                tokens = torch.cat([guesses[number][-1] for number in going])
                ends = list(range(len(going)))
            wanted = torch.tensor([ends[i] for i, number in enumerate(asked if place == 0 else going) if number in going], device=self._device)
            passes.append(len(tokens))
            logits = self.draft.run(tokens, None, RaggedBatch(self.cache, segments, self._device), wanted if going else None)
            if logits is not None:
                chosen = choose(logits[:, : self._vocab_size], going, [place] * len(going))
                for number, token in zip(going, chosen.split(1), strict=True):
                    guesses[number].append(token)
        made = [token for tokens in guesses for token in tokens]
        return Proposals(torch.cat(made) if made else tokens[:0], tuple(passes))
