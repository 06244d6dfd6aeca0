"""The past of many sequences in one fixed piece of memory.

Each sequence owns an extent: as many consecutive positions as it may ever need. So no sequence pads another, none
is moved or evicted, a crop is a change of a number, and the attention of one sequence reads plain views.
"""

from bisect import insort
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pard2.errors import Pard2Error


@dataclass(frozen=True, order=True)
class CacheRegion:
    """Positions start .. start + size - 1 of every layer."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


class KVCache:
    """Keys and values of `num_layers` layers, `positions` in all; a layer's buffers are made when it is first written.

    It knows where a sequence's past lies, not how much of its extent is filled.
    """

    def __init__(self, num_layers: int, positions: int) -> None:
        self.positions = positions
        self._gaps = [CacheRegion(0, positions)]  # free extents by position; neighbours are always merged
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._arrays: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def free(self) -> int:
        """Positions that no sequence owns."""
        return sum(gap.size for gap in self._gaps)

    def reserve(self, size: int) -> CacheRegion | None:
        """The first gap of `size` positions; None where there is none now."""
        for number, gap in enumerate(self._gaps):
            if gap.size >= size:
                rest = CacheRegion(gap.start + size, gap.size - size)
                self._gaps[number : number + 1] = [rest] if rest.size else []
                return CacheRegion(gap.start, size)
        return None

    def release(self, extent: CacheRegion) -> None:
        """Give an extent back. Raises `ValueError` for one that is free already."""
        if any(gap.start < extent.end and extent.start < gap.end for gap in self._gaps):
            raise ValueError(f"{extent} is free already")
        insort(self._gaps, extent)
        merged: list[CacheRegion] = []
        for gap in self._gaps:
            if merged and merged[-1].end == gap.start:
                merged[-1] = CacheRegion(merged[-1].start, merged[-1].size + gap.size)
            else:
                merged.append(gap)
        self._gaps = merged

    def layer(self, number: int, kv_heads: int, key_width: int, value_width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys [positions + 1, kv_heads, key_width] and values [positions + 1, kv_heads, value_width], of `like`'s dtype and device.

        The last position belongs to nobody; it is zero at first, and takes what padding rows write.
        Raises `Pard2Error` where memory does not suffice.
        """
        held = self._layers[number]
        if held is None:
            try:
                held = like.new_empty(self.positions + 1, kv_heads, key_width), like.new_empty(self.positions + 1, kv_heads, value_width)
            except RuntimeError:  # torch.OutOfMemoryError on CUDA, a plain RuntimeError on the CPU
                raise Pard2Error(f"a cache of {self.positions} positions does not fit on {like.device}; ask for fewer with `cache_tokens`") from None
            for buffer in held:
                buffer[-1] = 0
            self._layers[number] = held
        return held

    def arrays(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A layer's buffers as arrays of the same memory, on a CPU, once `layer` has made them."""
        if number not in self._arrays:
            held = self._layers[number]
            assert held is not None, "layer comes first"
            self._arrays[number] = held[0].numpy(), held[1].numpy()
        return self._arrays[number]
