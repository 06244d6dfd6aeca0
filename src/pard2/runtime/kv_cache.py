"""The past of many sequences in one fixed piece of memory.

Each sequence owns a region: as many consecutive cache places as it may ever need. So no sequence pads
another, none is evicted, a crop is a change of a number, and the attention of one sequence reads plain views.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pard2.errors import Pard2Error


@dataclass(frozen=True, order=True)
class CacheRegion:
    """Places start .. start + size - 1 of every layer."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


class KVCache:
    """Keys and values of `num_layers` layers, `num_places` in all; a layer's buffers are
    made when it is first written.

    It knows where a sequence's past lies, not how much of its region is filled.
    """

    def __init__(self, num_layers: int, num_places: int) -> None:
        self.num_places = num_places
        self._gaps = [CacheRegion(0, num_places)]  # free regions by place; neighbours are always merged
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._arrays: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._bytes: list[np.ndarray] = []  # the same memory as all buffers on a CPU, whatever their dtype

    @property
    def blank(self) -> int:
        """A place that nobody owns and nobody writes. It holds zeros: padding is read from here."""
        return self.num_places

    @property
    def scrap(self) -> int:
        """A place that nobody owns and nobody reads: padding is written here."""
        return self.num_places + 1

    # --- whose places they are --------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Places that no sequence owns."""
        return sum(gap.size for gap in self._gaps)

    def reserve(self, size: int) -> CacheRegion | None:
        """The first gap of `size` places; None where there is none now."""
        for number, gap in enumerate(self._gaps):
            if gap.size >= size:
                rest = CacheRegion(gap.start + size, gap.size - size)
                self._gaps[number : number + 1] = [rest] if rest.size else []
                return CacheRegion(gap.start, size)
        return None

    def release(self, region: CacheRegion) -> None:
        """Give a region back. Raises `ValueError` for one that is free already."""
        if any(gap.start < region.end and region.start < gap.end for gap in self._gaps):
            raise ValueError(f"{region} is free already")
        insort(self._gaps, region)
        merged: list[CacheRegion] = []
        for gap in self._gaps:
            if merged and merged[-1].end == gap.start:
                merged[-1] = CacheRegion(merged[-1].start, merged[-1].size + gap.size)
            else:
                merged.append(gap)
        self._gaps = merged

    # --- what they hold ---------------------------------------------------------------------------

    def layer(self, number: int, kv_heads: int, key_width: int, value_width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys [num_places + 2, kv_heads, key_width] and values [num_places
        + 2, kv_heads, value_width].

        The last two places are `blank` and `scrap`.

        like: whose dtype and device they have.

        Raises `Pard2Error` where memory does not suffice.
        """
        held = self._layers[number]
        if held is None:
            places = self.num_places + 2
            try:
                held = like.new_empty(places, kv_heads, key_width), like.new_empty(places, kv_heads, value_width)
            except RuntimeError:  # torch.OutOfMemoryError on CUDA, a plain RuntimeError on the CPU
                raise Pard2Error(f"a cache of {self.num_places} positions does not fit on {like.device}; ask for fewer with `cache_tokens`") from None
            for buffer in held:
                buffer[self.blank :] = 0
                if buffer.device.type == "cpu":
                    self._bytes.append(buffer.view(torch.uint8).numpy())
            self._layers[number] = held
        return held

    def arrays(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A layer's buffers as arrays of the same memory, on a CPU, once `layer` has made them."""
        if number not in self._arrays:
            held = self._layers[number]
            assert held is not None, "layer comes first"
            self._arrays[number] = held[0].numpy(), held[1].numpy()
        return self._arrays[number]

    def move(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """In every layer, what lies at place sources[i] goes to destinations[i], as if all at once.

        Destinations are different places.
        """
        moved = np.array([pair for pair in zip(sources, destinations, strict=True) if pair[0] != pair[1]], np.int64).reshape(-1, 2)
        if not len(moved):
            return
        if self._bytes:  # on a CPU, where NumPy's indexing takes a quarter of torch's time
            for array in self._bytes:
                array[moved[:, 1]] = array.take(moved[:, 0], axis=0)
            return
        made = [buffer for pair in self._layers if pair is not None for buffer in pair]
        if made:
            old, new = torch.from_numpy(moved.T.copy()).to(made[0].device, non_blocking=True)
            for buffer in made:
                buffer.index_copy_(0, new, buffer.index_select(0, old))
