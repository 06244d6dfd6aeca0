"""Who is decoded now: the queue, who is let in, whose prompt is read next, and whose memory is free again."""

from collections import deque
from collections.abc import Iterable
from itertools import islice

from pard2.engine.draft_length.adaptive import AdaptiveDraftLength
from pard2.engine.drafters.base import Drafter
from pard2.engine.processors import TokenCounts
from pard2.engine.request import Request
from pard2.engine.sequence import Memory, Sequence
from pard2.models.target import Target
from pard2.runtime.kv_cache import KVCache

PREFILL_TOKENS = 512  # of prompts in one pass; longer ones are read in chunks, between the cycles of the others


class Scheduler:
    """Requests that wait, requests that run, and the sequences of these, in one cache of the
    target's and one of the draft's.

    positions: of the target's cache, for all sequences together.
    max_batch: sequences decoded at once.
    lengths: gives each sequence its acceptance rates; None where the length of proposals is fixed.
    """

    def __init__(self, target: Target, drafter: Drafter, positions: int, max_batch: int, lengths: AdaptiveDraftLength | None) -> None:
        self.cache = KVCache(target.num_states - 1, positions)
        self.max_batch = max_batch
        self.sequences: list[Sequence] = []
        self._vocab_size, self._device = target.vocab_size, target.device
        self._drafter = drafter
        self._lengths = lengths
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs; then all of the cache is free."""
        return not self._waiting and not self._running

    def enqueue(self, requests: Iterable[Request]) -> None:
        self._waiting.extend(requests)

    def admit(self) -> None:
        """Let in whom there is room for.

        First come, first served: a small request does not overtake a large one for ever.
        """
        while self._waiting:
            request = self._waiting[0]
            if not all(self._admit(s) for s in request.sequences if s.memory is None and s.finish_reason is None):
                return
            self._running.append(self._waiting.popleft())

    def next_chunks(self) -> list[tuple[Sequence, int]]:
        """Whose prompts the next pass reads, and how many tokens of each: the longest waiting first."""
        room = PREFILL_TOKENS
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self.sequences:
            if not sequence.prefilled and room > 0:
                chunks.append((sequence, min(room, len(sequence.prompt) - sequence.num_computed_tokens)))
                room -= chunks[-1][1]
        return chunks

    def decoding(self) -> list[Sequence]:
        """The sequences whose prompts have been read, and which go on."""
        return [sequence for sequence in self.sequences if sequence.prefilled and sequence.finish_reason is None]

    def sweep(self) -> None:
        """Report steps, free what is finished, and forget requests that are done.

        The queue, which may be long, is not searched: only its first request may
        have sequences that run already.
        """
        for request in [*self._running, *islice(self._waiting, 1)]:
            request.report()
        self._release_finished()
        self._running = [request for request in self._running if not request.settled]

    def cancel_all(self) -> None:
        """End what runs and what waits with what has been said so far."""
        for request in [*self._running, *self._waiting]:
            request.cancel()
        self.sweep_queue()

    def sweep_queue(self) -> None:
        """`sweep`, and forget what was cancelled while it waited."""
        self._running += [request for request in self._waiting if request.done]
        self._waiting = deque(request for request in self._waiting if not request.done)
        self.sweep()

    def _admit(self, sequence: Sequence) -> bool:
        """Take a sequence in if there is a place and memory for all that it may say; False otherwise."""
        if len(self.sequences) == self.max_batch:
            return False
        region = self.cache.reserve(sequence.positions)
        if region is None:
            return False
        state = self._drafter.open(sequence.positions)
        if state is None:
            self.cache.release(region)
            return False
        sequence.memory = Memory(region, state)
        self.sequences.append(sequence)  # before anything that may fail: who is listed here is freed
        if sequence.params.penalised:
            sequence.counts = TokenCounts(sequence.prompt, self._vocab_size, self._device)
        if self._lengths is not None:
            sequence.acceptance = self._lengths.acceptance()
        return True

    def _release_finished(self) -> None:
        """Free what finished sequences own."""
        for sequence in self.sequences:
            if sequence.finish_reason is not None and sequence.memory is not None:
                self.cache.release(sequence.memory.region)
                self._drafter.close(sequence.memory.draft)
                sequence.memory = sequence.counts = None
        self.sequences = [sequence for sequence in self.sequences if sequence.memory is not None]
