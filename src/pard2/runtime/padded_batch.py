"""A ragged batch brought to a fixed shape, so that one captured graph serves every batch of that shape.

B sequences of T rows each, over C positions of the past: what a batch lacks of these is padding, which reads and writes a position
of the cache that belongs to nobody. All that changes from pass to pass lies in tensors that stay where they are. The
readable twin is `TokenBatch`.
"""

import numpy as np
import torch
from torch import Tensor

from pard2.runtime.kv_cache import KVCache
from pard2.runtime.token_batch import TokenBatch, capped_attention, grouped_attention


class PaddedBatch(TokenBatch):
    """Stands in for batches of at most `sequences` segments of `rows` rows, over at most `max_context_len` positions each."""

    def __init__(self, cache: KVCache, sequences: int, rows: int, max_context_len: int, device: torch.device) -> None:
        super().__init__(cache, (), device)
        self.sequences, self.rows_each = sequences, rows
        self._reach = max_context_len
        self.position_ids = torch.zeros(sequences * rows, dtype=torch.long, device=device)
        self._slots = torch.full((sequences * rows,), cache.positions, device=device)
        self._past = torch.full((sequences, max_context_len), cache.positions, device=device)
        self._seen = torch.arange(max_context_len, device=device)

    @property
    def rows(self) -> int:
        """N, padding included."""
        return self.sequences * self.rows_each

    @property
    def max_context_len(self) -> int:
        return self._reach

    def load(self, batch: TokenBatch) -> Tensor:
        """Take a batch's place. Returns [N of the batch]: which of our rows each of its rows is."""
        positions = np.zeros((self.sequences, self.rows_each), np.int64)
        slots = np.full((self.sequences, self.rows_each), self.cache.positions)
        past = np.full((self.sequences, self.max_context_len), self.cache.positions)
        ours = []
        for number, segment in enumerate(batch.segments):
            end = segment.past + segment.count
            positions[number, : segment.count] = np.arange(segment.past, end)
            slots[number, : segment.count] = np.arange(segment.past, end) + segment.extent.start
            # Positions behind the end may hold anything, NaN included, which no mask could keep out of a sum.
            past[number, :end] = np.arange(end) + segment.extent.start
            ours.append(np.arange(segment.count) + number * self.rows_each)
        self.position_ids.copy_(torch.from_numpy(positions.ravel()))
        self._slots.copy_(torch.from_numpy(slots.ravel()))
        self._past.copy_(torch.from_numpy(past))
        return torch.from_numpy(np.concatenate(ours)).to(self.device)

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """As `TokenBatch.attend`, in operations of fixed shape that never wait for the device."""
        held_keys, held_values = self.cache.layer(layer, keys.shape[1], keys.shape[2], values.shape[2], keys)
        held_keys.index_copy_(0, self._slots, keys)
        held_values.index_copy_(0, self._slots, values)
        k, v = held_keys[self._past].transpose(1, 2), held_values[self._past].transpose(1, 2)
        q = queries.unflatten(0, (self.sequences, self.rows_each)).transpose(1, 2)
        at = self.position_ids.view(self.sequences, 1, self.rows_each, 1)
        mask = self._seen <= at
        if window is not None:
            mask = mask & (self._seen > at - window)
        output = grouped_attention(q, k, v, mask, scale) if softcap is None else capped_attention(q, k, v, mask, scale, softcap)
        return output.transpose(1, 2).flatten(0, 1)
