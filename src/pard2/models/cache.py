"""A key-value cache that is cheap to extend and free to crop.

transformers' own growing cache copies all it holds at every step, and cannot be cropped past a
sliding window. This one keeps each layer in a buffer with room to spare: an extension writes the
new rows, a crop sets a number. Windowed layers keep their whole past; the model's mask hides what
lies outside the window.
"""

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class _Layer(CacheLayerMixin):
    """Keys and values [B, heads, capacity, head_dim], of which the first `length` positions are filled."""

    is_sliding = False
    is_croppable = True
    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(*key_states.shape[:2], self.capacity, key_states.shape[3])
        self.values = value_states.new_empty(*value_states.shape[:2], self.capacity, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            self._grow(end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, needed: int) -> None:
        self.capacity = max(needed, 2 * self.capacity)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], self.capacity, old.shape[3])
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def keep_rows(self, rows: Tensor) -> None:
        if self.is_initialized:
            self.keys = torch.index_select(self.keys, 0, rows)
            self.values = torch.index_select(self.values, 0, rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= abs(tokens_to_remove)


class KVCache(Cache):
    """The past of a batch of sequences of equal length, for any transformers causal LM with plain attention.

    capacity: positions to make room for at first; the buffers double when they are full.
    """

    def __init__(self, num_layers: int, capacity: int = 256) -> None:
        self._layers = [_Layer(capacity) for _ in range(num_layers)]
        super().__init__(layers=list(self._layers))

    @property
    def length(self) -> int:
        """Positions held."""
        return self._layers[0].length

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on. Raises `ValueError` if fewer are held."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} positions to {length}")
        for layer in self._layers:
            layer.length = length

    def keep_rows(self, rows: Tensor) -> None:
        """Keep only these sequences of the batch. rows: [B'] indices."""
        for layer in self._layers:
            layer.keep_rows(rows)
