"""One decoding cycle for all sequences of a batch (METHOD: section 5): plan, propose,
verify, commit, learn, emit.

It does not know how proposals come about (drafters), which of them stand (verification), how many to ask for
(draft length), who takes part (scheduler) nor who waits for the text (engine).
"""

import time
from collections.abc import Sequence as ListOf

import torch
from torch import Tensor

from pard2.engine.draft_length.adaptive import AdaptiveDraftLength, MeasuredCycle
from pard2.engine.draft_length.pass_times import PassTimes
from pard2.engine.draft_length.tree_size import TreeSize
from pard2.engine.draft_selection import DraftSelector
from pard2.engine.drafters.base import Drafted, Drafter, DraftRequest, PromptChunk
from pard2.engine.options import EngineOptions
from pard2.engine.proposal import Proposal
from pard2.engine.sequence import Memory, Sequence
from pard2.engine.statistics import Totals
from pard2.engine.timing import Stopwatch
from pard2.engine.token_selection import verify
from pard2.engine.verification import Verification
from pard2.models.target import Target
from pard2.runtime.decoder import DecoderOutput
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.token_batch import QuerySpan, TokenBatch

MOST_NODES = 64  # of a tree whose size is automatic

_BROKEN = "{!r} gave logits that are no numbers (NaN); its weights are damaged, or overflow in this precision: try `dtype` float32"


class Cycle:
    """The passes of a batch: over prompts (`prefill`), and one decoding cycle (`decode`).

    cache: the target's.
    depth: tokens of a proposal at most; 0 without a draft.
    lengths: chooses how many, of each sequence; None for always `depth`.
    options: rules, and the size of trees.
    """

    def __init__(
        self, target: Target, drafter: Drafter, cache: KVCache, depth: int, lengths: AdaptiveDraftLength | None, options: EngineOptions
    ) -> None:
        self.totals = Totals()
        self._target = target
        self._drafter = drafter
        self._cache = cache
        self._depth = depth
        self._lengths = lengths
        self._options = options
        self._tree_size = TreeSize() if options.tree == "auto" else None
        self._target_times = PassTimes() if lengths is None else lengths.target_times
        self._draft_seconds = 0.0  # of the cycle before
        self._device = target.device  # to ask a model for it costs a walk over its modules
        self._watch = Stopwatch(self._device)

    # --- prompts ----------------------------------------------------------------------------------

    def prefill(self, chunks: ListOf[tuple[Sequence, int]]) -> None:
        """Read the next tokens of these prompts; who is through says a first token."""
        if not chunks:
            return
        started = time.perf_counter()
        parts = [sequence.prompt[sequence.num_computed_tokens :][:count] for sequence, count in chunks]
        token_ids = self._tensor([token for part in parts for token in part])
        batch = TokenBatch(self._cache, [_span(sequence, count) for sequence, count in chunks], token_ids)
        done, ends, end = [], [], 0
        for sequence, count in chunks:
            end += count
            if sequence.num_computed_tokens + count == len(sequence.prompt):
                done.append(sequence)
                ends.append(end - 1)
        output = self._target.run(batch, self._tensor(ends) if ends else None, self._drafter.feature_layers)
        features = [None] * len(chunks) if output.features is None else output.features.split([count for _, count in chunks])
        self._drafter.prefill([PromptChunk(_memory(s).draft, part, f) for (s, _), part, f in zip(chunks, parts, features, strict=True)])
        for sequence, count in chunks:
            sequence.num_computed_tokens += count
        self._say_first(done, ends, token_ids, output, started)
        seconds = time.perf_counter() - started
        for sequence, _ in chunks:
            sequence.prefill_seconds += seconds
        self.totals += Totals(prefill_seconds=seconds)

    def _say_first(self, sequences: list[Sequence], ends: list[int], token_ids: Tensor, output: DecoderOutput, started: float) -> None:
        """The target's token after each prompt that has been read.

        ends: the row of its last token in the pass.
        started: when the pass began; what came before is in the sequence's `prefill_seconds`.
        """
        if output.logits is None:
            return
        nothing = Proposal(token_ids=token_ids[:0])
        verified = verify(sequences, output.logits, [nothing] * len(sequences), token_ids[self._tensor(ends)], self._options.verification)
        seconds = time.perf_counter() - started
        for sequence, one, end in zip(sequences, verified, ends, strict=True):
            if self._is_sound(sequence, one):
                self._drafter.update(_memory(sequence).draft, one.token_ids, output.features, [end])
                sequence.emit(one, seconds=sequence.prefill_seconds + seconds)

    # --- answers ----------------------------------------------------------------------------------

    def decode(self, sequences: list[Sequence]) -> None:
        """One cycle for these sequences."""
        if not sequences:
            return
        started = time.perf_counter()
        depths = self._plan(sequences)
        self._watch.start()
        drafted = self._propose(sequences, depths)
        self._watch.mark()
        batch, token_ids = self._lay_out(sequences, drafted.proposals)
        output = self._target.run(batch, torch.arange(len(token_ids), device=token_ids.device), self._drafter.feature_layers)
        self._watch.mark()
        assert output.logits is not None
        verified = verify(sequences, output.logits, drafted.proposals, token_ids, self._options.verification)
        draft_seconds, verify_seconds = self._watch.stretches()
        self._commit(sequences, verified, batch, output.features)
        self._learn(sequences, depths, drafted, verified, (draft_seconds, verify_seconds))
        said = self._emit(sequences, verified, time.perf_counter() - started, draft_seconds, verify_seconds)
        self.totals += Totals(
            cycles=1,
            tokens=said,
            decode_seconds=time.perf_counter() - started,
            draft_seconds=draft_seconds,
            verify_seconds=verify_seconds,
        )

    def _plan(self, sequences: list[Sequence]) -> list[int]:
        """How deep each proposal may be, never deeper than there is room for."""
        limits = [min(self._depth, self._drafter.limit(_memory(sequence).draft, sequence.length), sequence.room) for sequence in sequences]
        if self._lengths is None:
            return limits
        acceptances = [sequence.acceptance for sequence in sequences if sequence.acceptance is not None]
        return self._lengths.choose(acceptances, limits, [max(1, len(_memory(sequence).draft.pending)) for sequence in sequences])

    def _propose(self, sequences: list[Sequence], depths: list[int]) -> Drafted:
        """A proposal for each sequence, a tree where the options say so, no larger than its part
        of the cache has room for."""
        nodes = None
        if self._options.tree != 0:
            most = MOST_NODES if self._options.tree == "auto" else self._options.tree
            nodes = [min(most, _memory(sequence).region.size - sequence.num_computed_tokens - 1) for sequence in sequences]
        options = self._options
        selector = DraftSelector(sequences, options.draft_sampling, options.verification, self._target.vocab_size, nodes)
        requests = [DraftRequest(_memory(s).draft, depth, s.room) for s, depth in zip(sequences, depths, strict=True)]
        drafted = self._drafter.propose(requests, selector)
        if self._tree_size is None:
            return drafted
        probabilities = [proposal.probabilities for proposal in drafted.proposals]
        sizes = self._tree_size.choose(probabilities, self._target_times, self._draft_seconds)
        both = zip(drafted.proposals, sizes, strict=True)
        return Drafted([proposal if proposal.parents is None else proposal.first(size) for proposal, size in both], drafted.passes)

    def _lay_out(self, sequences: list[Sequence], proposals: list[Proposal]) -> tuple[TokenBatch, Tensor]:
        """The target's batch, each sequence's newest token and its proposal; and its token ids, where
        NOTHING, which cannot be read, stands."""
        newest = self._tensor([sequence.tokens[-1] for sequence in sequences]).split(1)
        token_ids = torch.cat([part for pair in zip(newest, (p.token_ids for p in proposals), strict=True) for part in pair])
        spans = [_span(sequence, p.num_nodes + 1, p.span_parents) for sequence, p in zip(sequences, proposals, strict=True)]
        return TokenBatch(self._cache, spans, token_ids.clamp(min=0)), token_ids

    def _commit(self, sequences: list[Sequence], verified: list[Verification], batch: TokenBatch, features: Tensor | None) -> None:
        """Keep what stands: the accepted path's keys and values, moved together, and its features.

        All else is overwritten later.
        """
        sources: list[int] = []
        destinations: list[int] = []
        row = 0
        for sequence, one, span in zip(sequences, verified, batch.spans, strict=True):
            first_row, row = row, row + span.count
            if not self._is_sound(sequence, one):
                continue
            for place, node in enumerate(one.path, 1):
                if node + 1 != place:
                    sources.append(span.first_place + node + 1)
                    destinations.append(span.first_place + place)
            sequence.num_computed_tokens += len(one.token_ids)
            rows = [first_row, *(first_row + node + 1 for node in one.path)]
            self._drafter.update(_memory(sequence).draft, one.token_ids, features, rows)
        if sources:
            self._cache.move(sources, destinations)

    def _learn(
        self, sequences: list[Sequence], depths: list[int], drafted: Drafted, verified: list[Verification], seconds: tuple[float, float]
    ) -> None:
        """Tell those who choose lengths what was proposed, what stood, and what it cost: seconds of
        the draft and of the target."""
        nodes = sum(proposal.num_nodes for proposal in drafted.proposals)
        # Of those asked for: a draft that brings NOTHING costs as much as one that is wrong, and what was
        # copied without being asked for (`NgramFirst`) says nothing about the draft.
        accepted = [min(one.accepted, depth) for one, depth in zip(verified, depths, strict=True)]
        self._draft_seconds = seconds[0]
        if self._tree_size is not None:
            self._tree_size.observe(sum(sum(proposal.probabilities) for proposal in drafted.proposals), sum(accepted))
        if self._lengths is None:
            self._target_times.observe(len(sequences) + nodes, seconds[1])
            return
        self._lengths.observe(
            MeasuredCycle(
                proposed=depths,
                accepted=accepted,
                draft_rows=drafted.passes,
                draft_seconds=seconds[0],
                verify_rows=len(sequences) + nodes,
                verify_seconds=seconds[1],
            )
        )
        for sequence, depth, count in zip(sequences, depths, accepted, strict=True):
            assert sequence.acceptance is not None
            sequence.acceptance.observe(depth, count)

    def _emit(self, sequences: list[Sequence], verified: list[Verification], seconds: float, draft_seconds: float, verify_seconds: float) -> int:
        """Say what stands; how many tokens were said."""
        said = 0
        for sequence, one in zip(sequences, verified, strict=True):
            if sequence.finish_reason is None:
                before = len(sequence.tokens)
                sequence.emit(one, seconds=seconds, draft_seconds=draft_seconds, verify_seconds=verify_seconds)
                said += len(sequence.tokens) - before
        return said

    def _is_sound(self, sequence: Sequence, one: Verification) -> bool:
        """False for a sequence whose logits are broken, which ends here."""
        if not one.sound:
            sequence.end("error", _BROKEN.format(self._target.name))
        return one.sound

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=self._device)


def _memory(sequence: Sequence) -> Memory:
    assert sequence.memory is not None, "the sequence takes no part"
    return sequence.memory


def _span(sequence: Sequence, count: int, parents: tuple[int, ...] | None = None) -> QuerySpan:
    return QuerySpan(_memory(sequence).region, sequence.num_computed_tokens, count, parents)
