"""EAGLE-3 drafting: one layer on the target's features, a pass for each further token (METHOD: section 9)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pard2.engine.draft_selection import DraftSelector
from pard2.engine.draft_state import DraftState
from pard2.engine.drafters.base import MOST_PENDING, Drafted, DraftRequest, PromptChunk
from pard2.engine.drafters.features import FeatureDrafter
from pard2.engine.dynamic_tree import DynamicTree
from pard2.engine.proposal import Proposal
from pard2.models.eagle3 import Eagle3Draft
from pard2.runtime.token_batch import QuerySpan, TokenBatch


@dataclass(frozen=True)
class _Ends:
    """The last slots of B texts that were read.

    logits: [B, D], of the tokens that the draft can propose.
    token_ids: [B] that they hold.
    inputs, outputs: [B, hidden], the features that they read, and those that the next depth takes.
    """

    logits: Tensor
    token_ids: Tensor
    inputs: Tensor
    outputs: Tensor

    def take(self, rows: list[int]) -> "_Ends":
        chosen = torch.tensor(rows, device=self.logits.device)
        return _Ends(self.logits[chosen], self.token_ids[chosen], self.inputs[chosen], self.outputs[chosen])


class Eagle3Drafter(FeatureDrafter):
    """Proposes a chain, or a tree grown by the probability of its paths.

    The token at t is read with f[t-1], at position t - 1; a text's first token, which no feature precedes, is
    not read. A guess is read with the output of the slot that it was guessed at. Its keys and values lie
    behind those of the text and are forgotten: once the target has said what stands, the draft reads that
    with true features.

    width: nodes of a depth that a tree is grown beyond; 0 for chains alone.
    depth: of a proposal, at most.
    max_batch: sequences at once.
    """

    def __init__(self, draft: Eagle3Draft, vocab_size: int, positions: int, width: int, depth: int, max_batch: int) -> None:
        spare = width * depth
        super().__init__(draft, vocab_size, positions + max_batch * spare, spare)
        self.draft = draft
        self.feature_layers = draft.spec.target_layers
        self._width = width

    def prefill(self, chunks: Sequence[PromptChunk]) -> None:
        for state, token_ids, features in ((chunk.state, chunk.token_ids, chunk.features) for chunk in chunks):
            assert features is not None
            before, read = features[:-1], token_ids[1:]
            if state.last_feature is not None:
                before, read = torch.cat([state.last_feature, before]), token_ids
            state.last_feature = features[-1:]
            if read:
                self.update(state, read, before)
        self._read([chunk.state for chunk in chunks if len(chunk.state.pending) >= MOST_PENDING], 0, [])

    def propose(self, requests: Sequence[DraftRequest], selector: DraftSelector) -> Drafted:
        wanted = [n for n, request in enumerate(requests) if request.depth]
        late = [n for n, request in enumerate(requests) if not request.depth and len(request.state.pending) >= MOST_PENDING]
        passes: list[int] = []
        selector.restrict(self.draft.token_ids)
        ends = self._read([requests[n].state for n in wanted + late], len(wanted), passes)
        trees: dict[int, Proposal] = {}
        for grown in (True, False):
            rows = [row for row, n in enumerate(wanted) if (selector.nodes(n) > 0) is grown]
            if rows and ends is not None:
                here, numbers = ends.take(rows), [wanted[row] for row in rows]
                if grown:
                    trees = self._trees(requests, numbers, here, selector, passes)
                else:
                    self._chains(requests, numbers, here, selector, passes)
        return Drafted([trees.get(n, chain) for n, chain in enumerate(selector.chains(self._device))], tuple(passes))

    def _read(self, states: Sequence[DraftState], wanted: int, passes: list[int]) -> "_Ends | None":
        """Read what is pending of these texts; what the draft says at the ends of the first `wanted`."""
        spans: list[QuerySpan] = []
        tokens: list[int] = []
        features: list[tuple[Tensor, Sequence[int]]] = []
        for state in states:
            assert state.region is not None and state.pending, "update comes first"
            spans.append(QuerySpan(state.region, state.num_computed_tokens, len(state.pending)))
            tokens += state.pending
            features += state.features
            state.num_computed_tokens += len(state.pending)
            state.pending, state.features = [], []
        if not spans:
            return None
        rows = torch.tensor([*accumulate(span.count for span in spans)][:wanted], dtype=torch.long, device=self._device) - 1
        batch = TokenBatch(self.cache, spans, torch.tensor(tokens, device=self._device))
        inputs = self.draft.fuse(self._gathered(features).to(self.draft.decoder_dtype))
        logits, outputs = self.draft.run(batch, inputs, rows if wanted else None)
        passes.append(len(tokens))
        return None if logits is None else _Ends(logits, batch.token_ids[rows], inputs[rows], outputs[rows])

    def _chains(self, requests: Sequence[DraftRequest], numbers: list[int], ends: "_Ends", selector: DraftSelector, passes: list[int]) -> None:
        """Let the selector guess token after token for the requests of these numbers."""
        logits, feature, depth = ends.logits, ends.outputs, 0
        while True:
            newest = selector.next(logits, numbers)
            depth += 1
            on = [row for row, n in enumerate(numbers) if requests[n].depth > depth]
            if not on:
                return
            rows, numbers = torch.tensor(on, device=self._device), [numbers[row] for row in on]
            spans = [self._span(requests[n].state, depth - 1, 1) for n in numbers]
            # NOTHING cannot be read, and no guess behind it counts.
            batch = TokenBatch(self.cache, spans, newest[rows].clamp(min=0))
            logits, feature = self.draft.run(batch, feature[rows], torch.arange(len(on), device=self._device))
            assert logits is not None
            passes.append(len(on))

    def _trees(
        self, requests: Sequence[DraftRequest], numbers: list[int], ends: "_Ends", selector: DraftSelector, passes: list[int]
    ) -> dict[int, Proposal]:
        """The tree of each request of these numbers.

        Every pass runs over the root, whose place is the last one computed, and all nodes expanded so far: a
        few rows more for one layer, and keys and values of earlier nodes need no places of their own.
        """
        trees = {n: DynamicTree(self._width) for n in numbers}
        inputs = dict(zip(numbers, ends.inputs.split(1), strict=True))  # of the rows of a tree's next pass
        outputs = dict(zip(numbers, ends.outputs.split(1), strict=True))  # of the rows of its last one
        roots = dict(zip(numbers, ends.token_ids.tolist(), strict=True))
        active, logits = numbers, ends.logits
        for depth in range(max(requests[n].depth for n in numbers)):
            children = selector.children(logits, active, [trees[n] for n in active], depth, self._width)
            for n, found in zip(active, children, strict=True):
                trees[n].grow(found)
            active = [n for n in active if requests[n].depth > depth + 1 and trees[n].frontier]
            if not active:
                break
            spans: list[QuerySpan] = []
            tokens: list[int] = []
            rows: list[int] = []
            for n in active:
                inputs[n] = torch.cat([inputs[n], outputs[n][trees[n].frontier_parents]])
                rows += [len(tokens) + row for row in trees[n].frontier]
                tokens += [roots[n], *trees[n].token_ids]
                spans.append(self._span(requests[n].state, -1, len(inputs[n]), (-1, *trees[n].parents)))
            batch = TokenBatch(self.cache, spans, torch.tensor(tokens, device=self._device))
            logits, following = self.draft.run(batch, torch.cat([inputs[n] for n in active]), torch.tensor(rows, device=self._device))
            assert logits is not None
            outputs = dict(zip(active, following.split([span.count for span in spans]), strict=True))
            passes.append(len(tokens))
        return {n: selector.proposal(tree.best(selector.nodes(n)), self._device) for n, tree in trees.items()}

    @staticmethod
    def _span(state: DraftState, places: int, count: int, parents: tuple[int, ...] | None = None) -> QuerySpan:
        """So many slots, `places` behind those computed."""
        assert state.region is not None
        return QuerySpan(state.region, state.num_computed_tokens + places, count, parents)
