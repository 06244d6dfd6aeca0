"""New rows of several sequences in one forward pass, each attending to its own past alone.

N rows lie one after the other without padding, `segment.count` of each sequence, so that linear layers see one
[N, hidden] matrix, and a sequence's result does not depend on what shares its batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pard2.runtime.kv_cache import CacheRegion, KVCache


@dataclass(frozen=True)
class QuerySpan:
    """`count` new rows of one sequence, whose extent holds `past` positions already."""

    extent: CacheRegion
    past: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.past + self.count > self.extent.size:
            raise ValueError(f"{self.count} rows after {self.past} do not fit an extent of {self.extent.size} positions")


class TokenBatch:
    """Where the rows of one pass stand, and their attention. Shapes: H query heads, KV key-value heads, D head_dim."""

    def __init__(self, cache: KVCache, segments: Sequence[QuerySpan], device: torch.device) -> None:
        self.cache = cache
        self.segments = tuple(segments)
        self.device = device
        self._masks: dict[tuple[int, int | None], Tensor] = {}
        self._visible: dict[int | None, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def rows(self) -> int:
        """N."""
        return sum(s.count for s in self.segments)

    @property
    def max_context_len(self) -> int:
        """Positions that the longest sequence has with its new rows."""
        return max(s.past + s.count for s in self.segments)

    @cached_property
    def position_ids(self) -> Tensor:
        """[N] position of each row within its own sequence."""
        return torch.from_numpy(self._positions).to(self.device)

    @cached_property
    def slots(self) -> np.ndarray:
        """[N] positions of the cache that the rows go to, on the host."""
        return self._positions + self._starts

    def visible(self, window: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the cache begin .. end - 1 that each row sees, its own included: [N] and [N], on the host."""
        if window not in self._visible:
            begins = self._starts if window is None else self._starts + np.maximum(0, self._positions - window + 1)
            self._visible[window] = begins, self.slots + 1
        return self._visible[window]

    @cached_property
    def _positions(self) -> np.ndarray:
        return np.concatenate([np.arange(s.past, s.past + s.count) for s in self.segments])

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.repeat([s.extent.start for s in self.segments], [s.count for s in self.segments])

    @cached_property
    def _slots(self) -> Tensor:
        return torch.from_numpy(self.slots).to(self.device)

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """Store the rows' keys and values, and attend: [N, H, D].

        queries: [N, H, D]. keys, values: [N, KV, D]. window: a row sees itself and the window - 1 positions before it.
        softcap: scores become cap * tanh(score / cap) (Gemma 2).
        """
        held_keys, held_values = self.cache.layer(layer, keys.shape[1], keys.shape[2], values.shape[2], keys)
        if len(self.segments) == 1:
            first = self.segments[0].extent.start + self.segments[0].past
            held_keys[first : first + len(keys)] = keys
            held_values[first : first + len(values)] = values
        else:
            held_keys.index_copy_(0, self._slots, keys)
            held_values.index_copy_(0, self._slots, values)
        return self.attend_stored(held_keys, held_values, queries, scale, window, softcap)

    def attend_stored(
        self, held_keys: Tensor, held_values: Tensor, queries: Tensor, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """`attend` with the rows' keys and values stored already. held_keys, held_values: a layer of the cache, [positions, KV, D]."""
        outputs = []
        row = 0
        for number, segment in enumerate(self.segments):
            end = segment.past + segment.count
            # Positions before the first row's window are seen by no row.
            begin = 0 if window is None else max(0, segment.past - window + 1)
            here = slice(segment.extent.start + begin, segment.extent.start + end)
            q = queries[row : row + segment.count].transpose(0, 1)
            k, v = held_keys[here].transpose(0, 1), held_values[here].transpose(0, 1)
            mask = self._mask(number, window)
            if softcap is None:
                # Rows without a past need no mask in memory.
                causal = mask is not None and begin == segment.past and (window is None or window >= segment.count)
                if causal:
                    output = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True)[0]
                else:
                    output = grouped_attention(q[None], k[None], v[None], mask, scale)[0]
            else:
                output = capped_attention(q[None], k[None], v[None], mask, scale, softcap)[0]
            outputs.append(output.transpose(0, 1))
            row += segment.count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _mask(self, number: int, window: int | None) -> Tensor | None:
        """[count, positions read] of a segment, True where a row may look; None for a single row, which sees all that is read."""
        segment = self.segments[number]
        if segment.count == 1:
            return None
        key = (number, window)
        if key not in self._masks:
            begin = 0 if window is None else max(0, segment.past - window + 1)
            at = torch.arange(segment.past, segment.past + segment.count, device=self.device)[:, None]
            seen = torch.arange(begin, segment.past + segment.count, device=self.device)
            mask = seen <= at
            self._masks[key] = mask if window is None else mask & (seen > at - window)
        return self._masks[key]


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[B, H, T, D] of q [B, H, T, D] and k, v [B, KV, S, D] under a mask [.., T, S] or none.

    The query heads that share a key head become more rows of it: with a mask, torch's kernels for grouped heads would copy k and v.
    """
    sequences, heads, rows, width = q.shape
    groups = heads // k.shape[1]
    if mask is not None and groups > 1:
        mask = mask.repeat(*[1] * (mask.dim() - 2), groups, 1)
    output = F.scaled_dot_product_attention(q.reshape(sequences, k.shape[1], groups * rows, width), k, v, attn_mask=mask, scale=scale)
    return output.reshape(sequences, heads, rows, -1)


def capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """`grouped_attention` with softly capped scores, for which torch has no kernel."""
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).transpose(2, 3) * scale
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v.repeat_interleave(groups, 1)
