"""Vanilla speculative drafting: an ordinary small LM, one pass for each proposed token."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pard2.engine.drafters.base import MOST_PENDING, Ask, Choose, Proposals, Reading
from pard2.engine.drafters.model import ModelDrafter
from pard2.runtime.token_batch import QuerySpan, TokenBatch


class AutoregressiveDrafter(ModelDrafter):
    """Continuation by the draft's LM. Target-independent; a mask token, if the draft has one, is not used.

    vocab_size: the target's; ids from there on are never proposed. positions: of the draft's cache, for all sequences together.
    """

    feature_layers: tuple[int, ...] = ()
    sequential = True

    def absorb(self, reading: Reading, token_ids: Sequence[int], features: Tensor | None) -> None:
        # Guesses that stand are in the cache already, all but the last one proposed, which was never fed.
        kept = min(len(token_ids) - 1, reading.guessed)
        reading.length += kept
        reading.guessed = 0
        self._put_off(reading, token_ids[kept:])

    def propose(self, asks: Sequence[Ask], choose: Choose) -> Proposals:
        guesses: list[list[Tensor]] = [[] for _ in asks]
        passes = []
        for place in range(max((ask.k for ask in asks), default=0) or 1):
            # The first pass reads what is pending, of those too that merely have too much of it.
            reads = [n for n, ask in enumerate(asks) if ask.k > place or (place == 0 and len(ask.reading.pending) >= MOST_PENDING)]
            if not reads:
                break
            fed = [self._feed(asks[n].reading, guesses[n]) for n in reads]
            segments, ends = [segment for segment, _ in fed], list(accumulate(segment.count for segment, _ in fed))
            wanted = [(n, end - 1) for n, end in zip(reads, ends, strict=True) if asks[n].k > place]
            rows = torch.tensor([row for _, row in wanted], device=self._device) if wanted else None
            token_ids = torch.cat([tokens for _, tokens in fed])
            passes.append(len(token_ids))
            logits = self.draft.run(TokenBatch(self.cache, segments, token_ids), None, rows)
            if logits is not None:
                numbers = [n for n, _ in wanted]
                chosen = choose(logits[:, : self._vocab_size], numbers, [place] * len(numbers))
                for n, token in zip(numbers, chosen.split(1), strict=True):
                    guesses[n].append(token)
        made = [token for tokens in guesses for token in tokens]
        return Proposals(torch.cat(made) if made else torch.zeros(0, dtype=torch.long, device=self._device), tuple(passes))

    def _feed(self, reading: Reading, guesses: list[Tensor]) -> tuple[QuerySpan, Tensor]:
        """The rows that a sequence brings to the next pass: what is pending at first, its latest guess afterwards."""
        assert reading.extent is not None
        if guesses:
            # Behind NOTHING, which cannot be read, no guess counts.
            segment, tokens = QuerySpan(reading.extent, reading.length + reading.guessed, 1), guesses[-1].clamp(min=0)
            reading.guessed += 1
            return segment, tokens
        assert reading.pending, "absorb comes first"
        segment, tokens = QuerySpan(reading.extent, reading.length, len(reading.pending)), torch.tensor(reading.pending, device=self._device)
        reading.length += len(reading.pending)
        reading.pending = []
        return segment, tokens
