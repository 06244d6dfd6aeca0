"""The past of many sequences in one fixed piece of memory.

Each sequence owns an extent: as many consecutive positions as it may ever need. So no sequence pads another, none
is moved or evicted, a crop is a change of a number, and the attention of one sequence reads plain views.
"""

from bisect import insort
from dataclasses import dataclass

from torch import Tensor

from pard2.errors import Pard2Error


@dataclass(frozen=True, order=True)
class Extent:
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
        self._gaps = [Extent(0, positions)]  # free extents by position; neighbours are always merged
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    @property
    def free(self) -> int:
        """Positions that no sequence owns."""
        return sum(gap.size for gap in self._gaps)

    def reserve(self, size: int) -> Extent | None:
        """The first gap of `size` positions; None where there is none now."""
        for number, gap in enumerate(self._gaps):
            if gap.size >= size:
                rest = Extent(gap.start + size, gap.size - size)
                self._gaps[number : number + 1] = [rest] if rest.size else []
                return Extent(gap.start, size)
        return None

    def release(self, extent: Extent) -> None:
        """Give an extent back. Raises `ValueError` for one that is free already."""
        if any(gap.start < extent.end and extent.start < gap.end for gap in self._gaps):
            raise ValueError(f"{extent} is free already")
        insort(self._gaps, extent)
        merged: list[Extent] = []
        for gap in self._gaps:
            if merged and merged[-1].end == gap.start:
                merged[-1] = Extent(merged[-1].start, merged[-1].size + gap.size)
            else:
                merged.append(gap)
        self._gaps = merged

    def layer(self, number: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers [positions, kv_heads, head_dim] of a layer. keys, values: [N, kv_heads, head_dim], for shape and kind.

        Raises `Pard2Error` where memory does not suffice.
        """
        held_keys, held_values = self._keys[number], self._values[number]
        if held_keys is None or held_values is None:
            try:
                held_keys = self._keys[number] = keys.new_empty(self.positions, *keys.shape[1:])
                held_values = self._values[number] = values.new_empty(self.positions, *values.shape[1:])
            except RuntimeError:  # torch.OutOfMemoryError on CUDA, a plain RuntimeError on the CPU
                raise Pard2Error(
                    f"a cache of {self.positions} positions does not fit on {keys.device}; ask for fewer with cache_tokens (--cache-tokens)"
                ) from None
        return held_keys, held_values
