"""The sequences that are decoded together: who may join, one pass over their prompts, one cycle for all of them.

It runs the cycle of METHOD: section 5. It does not know how proposals come about (drafters), which of them stand
(verification), how many to ask for (draft length), nor who waits for the text (engine).
"""

import time

import torch
from torch import Tensor

from pard2.engine.draft_length.adaptive import DraftLengths
from pard2.engine.drafters.base import Ask, Drafter
from pard2.engine.options import DraftSampling, VerificationRule
from pard2.engine.processors import TokenCounts
from pard2.engine.sequence import Memory, Sequence
from pard2.engine.statistics import Totals
from pard2.engine.timing import Stopwatch
from pard2.engine.token_selection import ProposalChooser, choose
from pard2.models.target import Target
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.token_batch import QuerySpan, TokenBatch

PREFILL_ROWS = 512  # of prompts in one pass; longer ones are read in chunks, between the cycles of the others

_BROKEN = "{!r} gave logits that are no numbers (NaN); its weights are damaged, or overflow in this precision: try `dtype` float32"


class Batch:
    """Sequences in decoding, in one cache of `positions` positions of the target's and as many of the draft's.

    max_size: sequences at once. draft_tokens: proposals in a cycle at most; 0 without a draft. lengths: chooses how many, None for
    always `draft_tokens`.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        positions: int,
        max_size: int,
        draft_tokens: int,
        lengths: DraftLengths | None,
        draft_sampling: DraftSampling,
        rule: VerificationRule,
    ) -> None:
        self.cache = KVCache(target.num_states - 1, positions)
        self.max_size = max_size
        self.sequences: list[Sequence] = []
        self.totals = Totals()
        self._target = target
        self._vocab_size = target.vocab_size
        self._drafter = drafter
        self._draft_tokens = draft_tokens
        self._lengths = lengths
        self._draft_sampling: DraftSampling = draft_sampling
        self._rule: VerificationRule = rule
        self._watch = Stopwatch(target.device)

    # --- who takes part ---------------------------------------------------------------------------

    def admit(self, sequence: Sequence) -> bool:
        """Take a sequence in if there is a place and memory for all that it may say; False otherwise."""
        if len(self.sequences) == self.max_size:
            return False
        extent = self.cache.reserve(sequence.positions)
        if extent is None:
            return False
        reading = self._drafter.open(sequence.positions)
        if reading is None:
            self.cache.release(extent)
            return False
        sequence.memory = Memory(extent, reading)
        self.sequences.append(sequence)  # before anything that may fail: who is listed here is freed
        if sequence.params.penalised:
            sequence.counts = TokenCounts(sequence.prompt, self._vocab_size, self._target.device)
        if self._lengths is not None:
            sequence.acceptance = self._lengths.acceptance()
        return True

    def dismiss_finished(self) -> None:
        """Free what finished sequences own."""
        for sequence in self.sequences:
            if sequence.finish_reason is not None and sequence.memory is not None:
                self.cache.release(sequence.memory.extent)
                self._drafter.close(sequence.memory.reading)
                sequence.memory = sequence.counts = sequence.last_feature = None
        self.sequences = [sequence for sequence in self.sequences if sequence.memory is not None]

    # --- prompts ----------------------------------------------------------------------------------

    def prefill(self) -> None:
        """Read up to PREFILL_ROWS tokens of prompts, the longest waiting first; who is through says a first token."""
        started = time.perf_counter()
        room = PREFILL_ROWS
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self.sequences:
            if not sequence.prefilled and room > 0:
                chunks.append((sequence, min(room, len(sequence.prompt) - sequence.held)))
                room -= chunks[-1][1]
        if not chunks:
            return
        batch = TokenBatch(self.cache, [_segment(sequence, count) for sequence, count in chunks], self._target.device)
        rows = [token for sequence, count in chunks for token in sequence.prompt[sequence.held : sequence.held + count]]
        ends, end = [], 0
        for sequence, count in chunks:
            end += count
            if sequence.held + count == len(sequence.prompt):
                ends.append(end - 1)
        token_ids = torch.tensor(rows, device=self._target.device)
        wanted = torch.tensor(ends, device=self._target.device) if ends else None
        output = self._target.run(token_ids, batch, wanted, self._drafter.feature_layers)
        row = 0
        for sequence, count in chunks:
            self._absorb_prompt(sequence, rows[row : row + count], None if output.features is None else output.features[row : row + count])
            sequence.held += count
            row += count
        # The draft puts off what it has read little of; long prompts it reads chunk by chunk.
        self._drafter.propose([Ask(_memory(sequence).reading, 0) for sequence, _ in chunks], _nothing_to_choose)
        done = [sequence for sequence, _ in chunks if sequence.prefilled]
        chosen = [] if output.logits is None else choose(done, output.logits, [token_ids[:0]] * len(done), _not_drawn, self._rule)
        seconds = time.perf_counter() - started
        for sequence, _ in chunks:
            sequence.prefill_seconds += seconds
        for sequence, one in zip(done, chosen, strict=True):
            if not one.sound:
                sequence.end("error", _BROKEN.format(self._target.name))
                continue
            self._drafter.absorb(_memory(sequence).reading, one.block, sequence.last_feature)
            sequence.last_feature = None
            sequence.emit(one.block, 0, 0, sequence.prefill_seconds, logprobs=one.logprobs)
        self.totals += Totals(prefill_seconds=seconds)

    def _absorb_prompt(self, sequence: Sequence, tokens: list[int], features: Tensor | None) -> None:
        """Hand a chunk of the prompt to the drafter, each token with the feature of the position before it."""
        shifted = None
        if features is not None:
            before = torch.zeros_like(features[:1]) if sequence.last_feature is None else sequence.last_feature
            shifted = torch.cat([before, features[:-1]])
            sequence.last_feature = features[-1:]
        self._drafter.absorb(_memory(sequence).reading, tokens, shifted)

    # --- answers ----------------------------------------------------------------------------------

    def decode(self) -> None:
        """One cycle for every sequence whose prompt has been read: propose, verify, emit."""
        started = time.perf_counter()
        sequences = [sequence for sequence in self.sequences if sequence.prefilled and sequence.finish_reason is None]
        if not sequences:
            return
        ks = self._choose_lengths(sequences)
        chooser = ProposalChooser(sequences, self._draft_sampling, self._rule, self._vocab_size)
        self._watch.start()
        asks = [Ask(_memory(sequence).reading, k) for sequence, k in zip(sequences, ks, strict=True)]
        proposals = self._drafter.propose(asks, chooser)
        self._watch.mark()
        guesses = proposals.of(asks)
        newest = torch.tensor([sequence.tokens[-1] for sequence in sequences], device=self._target.device).split(1)
        token_ids = torch.cat([part for pair in zip(newest, guesses, strict=True) for part in pair]).clamp_(min=0)  # NOTHING cannot be read
        batch = TokenBatch(self.cache, [_segment(sequence, k + 1) for sequence, k in zip(sequences, ks, strict=True)], self._target.device)
        output = self._target.run(token_ids, batch, torch.arange(len(token_ids), device=token_ids.device), self._drafter.feature_layers)
        self._watch.mark()
        assert output.logits is not None
        chosen = choose(sequences, output.logits, guesses, chooser.q, self._rule)
        draft_seconds, verify_seconds = self._watch.stretches()
        features = [None] * len(ks) if output.features is None else output.features.split([k + 1 for k in ks])
        for sequence, one, rows in zip(sequences, chosen, features, strict=True):
            if not one.sound:
                sequence.end("error", _BROKEN.format(self._target.name))
                continue
            # What was rejected lies behind the new length: forgotten.
            sequence.held += len(one.block)
            self._drafter.absorb(_memory(sequence).reading, one.block, None if rows is None else rows[: len(one.block)])
        if self._lengths is not None:
            accepted = [one.accepted for one in chosen]  # of those asked for: a draft that brings NOTHING costs as much as one that is wrong
            self._lengths.observe(ks, accepted, proposals.passes, draft_seconds, len(token_ids), verify_seconds)
            for sequence, k, count in zip(sequences, ks, accepted, strict=True):
                assert sequence.acceptance is not None
                sequence.acceptance.observe(k, count)
        seconds = time.perf_counter() - started
        said = 0
        for sequence, one in zip(sequences, chosen, strict=True):
            if sequence.finish_reason is None:
                before = len(sequence.tokens)
                sequence.emit(one.block, one.accepted, one.proposed, seconds, draft_seconds, verify_seconds, one.logprobs)
                said += len(sequence.tokens) - before
        self.totals += Totals(1, said, 0.0, time.perf_counter() - started, draft_seconds, verify_seconds)

    def _choose_lengths(self, sequences: list[Sequence]) -> list[int]:
        """Proposals for each sequence, never more than it has room for."""
        limits = [min(self._draft_tokens, self._drafter.limit(sequence.length), sequence.limit - len(sequence.tokens) - 1) for sequence in sequences]
        if self._lengths is None:
            return limits
        acceptances = [sequence.acceptance for sequence in sequences if sequence.acceptance is not None]
        return self._lengths.choose(acceptances, limits, [max(1, len(_memory(sequence).reading.pending)) for sequence in sequences])


def _memory(sequence: Sequence) -> Memory:
    assert sequence.memory is not None, "the sequence takes no part"
    return sequence.memory


def _segment(sequence: Sequence, count: int) -> QuerySpan:
    return QuerySpan(_memory(sequence).extent, sequence.held, count)


def _not_drawn(number: int) -> None:
    return None


def _nothing_to_choose(logits: Tensor, numbers: object, places: object) -> Tensor:
    raise AssertionError("nothing was asked for")
