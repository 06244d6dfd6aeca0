"""A token batch brought to a fixed shape, so that its attention is one call for all sequences.

B sequences of T tokens each, over up to C tokens of context: what a batch lacks of these is padding,
which reads a cache place of zeros and writes one that nobody reads. The host hands over a few numbers
for each sequence; places, positions and masks are computed from them on the device, so that the host's
work does not grow with the context and one captured graph serves every batch that fits the shape. The
readable twin is `TokenBatch`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pard2.runtime.decoder import Decoder, DecoderOutput
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.token_batch import TokenBatch, additive, grouped_attention, to_device

_MOST_TOKENS = 65  # of one sequence, in a pass worth padding: a tree of 64 nodes and its root
_ALIGNMENT = 16  # of a mask's rows; CUDA's attention kernels would copy one that is not aligned


@dataclass(frozen=True)
class PaddedShape:
    """What a padded batch has room for.

    sequences: B.
    tokens: T, new ones of each sequence.
    max_context_len: C, tokens of each sequence with its new ones.
    trees: whether the new tokens may form trees; chains alone have simpler masks.
    """

    sequences: int
    tokens: int
    max_context_len: int
    trees: bool


class PaddedBatch(TokenBatch):
    """Stands in for batches of up to `shape.sequences` spans: `load` one, then `prepare` the pass.

    All its tokens are N = B * T.
    """

    def __init__(self, cache: KVCache, shape: PaddedShape, device: torch.device) -> None:
        super().__init__(cache, (), torch.zeros(shape.sequences * shape.tokens, dtype=torch.long, device=device))
        self.max_context_len = shape.max_context_len
        self._shape = shape
        # Of each sequence: first place of its region, computed tokens, new tokens; with trees,
        # the parent of each new token.
        self._table = torch.zeros(shape.sequences, 3 + shape.tokens * shape.trees, dtype=torch.long, device=device)
        self._views: dict[tuple[int | None, int], tuple[Tensor, Tensor]] = {}

    def load(self, batch: TokenBatch) -> Tensor:
        """Take a batch's place. Returns [N of the batch]: which of our tokens each of its tokens is."""
        rows, columns = self._table.shape
        ours = np.flatnonzero(np.arange(self._shape.tokens) < batch.numbers[:, 2:])
        numbers = np.zeros(rows * columns + len(ours), np.int64)  # all of it in one copy to the device
        numbers[rows * columns :] = ours
        table = numbers[: rows * columns].reshape(rows, columns)
        table[: len(batch.spans), :3] = batch.numbers
        if self._shape.trees:
            table[:, 4:] = np.arange(self._shape.tokens - 1)  # a chain's; the root counts as its own parent
            for row, span in zip(table, batch.spans, strict=False):
                if span.parents is not None:
                    row[4 : 3 + span.count] = span.parents[1:]
        there = to_device(numbers, self.device)
        self._table.copy_(there[: rows * columns].view(rows, columns))
        self.token_ids.index_copy_(0, there[rows * columns :], batch.token_ids)
        return there[rows * columns :]

    def prepare(self) -> None:
        """Compute places and positions from the numbers loaded, on the device: the first part of
        a pass, and of its graph."""
        first, computed, count = self._table[:, :3, None].unbind(1)
        index = torch.arange(self._shape.tokens, device=self.device)
        self._first, self._computed_tokens, self._end = first, computed, computed + count
        self._related = _ancestry(self._table[:, 3:]) if self._shape.trees else None
        self._depths = index.expand(self._shape.sequences, -1) if self._related is None else self._related.sum(-1) - 1
        real = index < count
        self.positions = torch.where(real, computed + self._depths, 0).flatten()
        self._places = torch.where(real, first + computed + index, self.cache.scrap).flatten()
        self._views.clear()

    def _view(self, window: int | None, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cache places [B, S] that each sequence reads, and what is added to its scores, [B, 1, groups *
        T, S]: 0 or minus infinity."""
        if (window, groups) not in self._views:
            shape, computed = self._shape, self._computed_tokens
            width = shape.max_context_len if window is None else min(shape.max_context_len, window - 1 + shape.tokens)
            begin = 0 if window is None else (computed - window + 1).clamp(min=0)
            # Which of its sequence's places, counted from the region's first, each column reads. In a
            # chain that is its position.
            read = begin + torch.arange(-(-width // _ALIGNMENT) * _ALIGNMENT, device=self.device).expand(shape.sequences, -1)
            # Places behind the end may hold anything, NaN included, which no mask could keep out of a sum.
            places = torch.where(read < self._end, self._first + read, self.cache.blank)
            own = self.positions.view(shape.sequences, shape.tokens, 1)
            if self._related is None:
                positions, seen = read, read[:, None] <= own
            else:
                order = read - computed  # among the new tokens
                token = order.clamp(0, shape.tokens - 1)
                related = self._related.gather(2, token[:, None].expand(-1, shape.tokens, -1)) & (order < shape.tokens)[:, None]
                positions = torch.where(order < 0, read, computed + self._depths.gather(1, token))
                seen = (order < 0)[:, None] | related
            if window is not None:
                seen = seen & (positions[:, None] > own - window)
            self._views[window, groups] = places, additive(seen, dtype).repeat(1, groups, 1)[:, None]
        return self._views[window, groups]

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """As `TokenBatch.attend`, in operations of fixed shape that never wait for the device."""
        held_keys, held_values = self.cache.layer(layer, keys.shape[1], keys.shape[2], values.shape[2], keys)
        held_keys.index_copy_(0, self._places, keys)
        held_values.index_copy_(0, self._places, values)
        places, mask = self._view(window, queries.shape[1] // keys.shape[1], queries.dtype)
        q = queries.unflatten(0, (self._shape.sequences, self._shape.tokens)).transpose(1, 2)
        k, v = held_keys[places].transpose(1, 2), held_values[places].transpose(1, 2)
        return grouped_attention(q, k, v, mask, scale, softcap).transpose(1, 2).flatten(0, 1)


def _ancestry(parents: Tensor) -> Tensor:
    """[B, T, T] bool: token j (column) is token i (row) or one of its ancestors.

    parents: [B, T]; the root is its own.
    """
    index = torch.arange(parents.shape[1], device=parents.device)
    seen = (parents[..., None] == index) | (index[:, None] == index)  # as far as one step up
    steps = 1
    while steps < len(index) - 1:
        seen = (seen.float() @ seen.float()) > 0  # twice as far
        steps *= 2
    return seen


def is_small(batch: TokenBatch) -> bool:
    """Whether a batch is worth padding: no sequence has many new tokens, as prompts have."""
    return int(batch.numbers[:, 2].max()) <= _MOST_TOKENS


class PaddedDecoder:
    """Another decoder's passes, small ones of several sequences with one attention call for all. For CUDA.

    decoder: runs the passes.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def run(self, batch: TokenBatch, embeddings: Tensor | None, logit_rows: Tensor | None, layers: tuple[int, ...] = ()) -> DecoderOutput:
        if len(batch.spans) < 2 or not is_small(batch):  # a padded batch has no spans
            return self.decoder.run(batch, embeddings, logit_rows, layers)
        shape = PaddedShape(len(batch.spans), int(batch.numbers[:, 2].max()), batch.max_context_len, batch.has_trees)
        padded = PaddedBatch(batch.cache, shape, batch.device)
        ours = padded.load(batch)
        padded.prepare()
        given = None if embeddings is None else embeddings.new_zeros(padded.num_tokens, embeddings.shape[1]).index_copy_(0, ours, embeddings)
        output = self.decoder.run(padded, given, None if logit_rows is None else ours[logit_rows], layers)
        return DecoderOutput(output.logits, None if output.features is None else output.features[ours])
