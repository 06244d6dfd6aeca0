"""The new tokens of several sequences in one forward pass, each attending to its own past alone.

N tokens lie one after the other without padding, so that linear layers see one [N, hidden] matrix, and a
sequence's result does not depend on what shares its batch. Where they stand and what they see is data: the
next tokens of a text, a chunk of a prompt and a tree of proposals are the same thing to a decoder.
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
    """The new tokens of one sequence in a pass.

    Token i goes to cache place `region.start + num_computed_tokens + i`. It sees the computed
    tokens, its ancestors and itself.

    region: the sequence's part of the cache.
    num_computed_tokens: tokens whose keys and values the region holds already, from its start.
    count: new tokens.
    parents: None for a chain, where each token's parent is the one before. For a tree, the index of each
        token's parent among the new ones: -1 for the first one, the root, which follows the computed tokens,
        and an earlier token's for any other.
    """

    region: CacheRegion
    num_computed_tokens: int
    count: int
    parents: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or self.num_computed_tokens + self.count > self.region.size:
            raise ValueError(f"{self.count} tokens after {self.num_computed_tokens} do not fit a region of {self.region.size} places")
        if self.parents is not None and not _is_tree(self.parents, self.count):
            raise ValueError(f"{self.parents} are not the parents of a tree of {self.count} tokens")

    @cached_property
    def ancestors(self) -> np.ndarray:
        """[count, count] bool of a tree: token j (column) is token i (row) or one of its ancestors."""
        assert self.parents is not None, "a chain needs none"
        seen = np.eye(self.count, dtype=bool)
        for token, parent in enumerate(self.parents[1:], 1):
            seen[token] |= seen[parent]
        return seen

    @cached_property
    def depths(self) -> np.ndarray:
        """[count] of each token: how many positions behind the first one it stands."""
        return np.arange(self.count) if self.parents is None else self.ancestors.sum(1) - 1

    @property
    def first_place(self) -> int:
        """The cache place of the first new token."""
        return self.region.start + self.num_computed_tokens


def _is_tree(parents: tuple[int, ...], count: int) -> bool:
    return len(parents) == count and parents[0] == -1 and all(0 <= parent < token for token, parent in enumerate(parents[1:], 1))


class TokenBatch:
    """Which tokens one pass computes, where they stand, and their attention.

    Shapes: N tokens, S spans, H query heads, KV key-value heads, D head_dim.

    cache: of the model that runs the pass.
    spans: one for each sequence.
    token_ids: [N], span by span, on the model's device. In a pass that is given embeddings,
        those are what the model reads.
    """

    def __init__(self, cache: KVCache, spans: Sequence[QuerySpan], token_ids: Tensor) -> None:
        self.cache = cache
        self.spans = tuple(spans)
        self.token_ids = token_ids
        self._masks: dict[tuple[int, int | None, int], Tensor] = {}
        self._visible: dict[int | None, np.ndarray] = {}

    @property
    def device(self) -> torch.device:
        return self.token_ids.device

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.token_ids)

    @cached_property
    def max_context_len(self) -> int:
        """Tokens that the longest sequence has with its new ones."""
        return int((self.numbers[:, 1] + self.numbers[:, 2]).max())

    @cached_property
    def has_trees(self) -> bool:
        return any(span.parents is not None for span in self.spans)

    @cached_property
    def numbers(self) -> np.ndarray:
        """[S, 3]: each span's first cache place of its region, computed tokens, and new tokens."""
        return np.array([(span.region.start, span.num_computed_tokens, span.count) for span in self.spans])

    @cached_property
    def positions(self) -> Tensor:
        """[N] position of each token within its own sequence."""
        return to_device(self._positions, self.device)

    @cached_property
    def places(self) -> np.ndarray:
        """[N] places of the cache that the tokens go to, on the host."""
        return self._spans[:, 0] + self._spans[:, 1] + self._order

    @cached_property
    def _places(self) -> Tensor:
        return to_device(self.places, self.device)

    @cached_property
    def _positions(self) -> np.ndarray:
        return self._spans[:, 1] + (np.concatenate([span.depths for span in self.spans]) if self.has_trees else self._order)

    @cached_property
    def _spans(self) -> np.ndarray:
        """[N, 3]: for each token the numbers of its span."""
        return self.numbers.repeat(self.numbers[:, 2], axis=0)

    @cached_property
    def _order(self) -> np.ndarray:
        """[N] of each token: how many of its span come before it."""
        counts = self.numbers[:, 2]
        return np.arange(len(self._spans)) - (counts.cumsum() - counts).repeat(counts)

    # --- what a token sees ------------------------------------------------------------------------

    def visible(self, window: int | None = None) -> np.ndarray:
        """[N, 3 + A], on the host: the cache places that each token sees, its own included, in
        the order of their positions.

        Columns 0 and 1 are the begin and end of a stretch of places, column 2 says how many single places
        follow, columns 3 on are these. A chain's tokens see a stretch alone, a tree's the computed tokens as
        a stretch and then their ancestors.
        """
        if window not in self._visible:
            deepest = max(int(span.depths.max()) + 1 for span in self.spans if span.parents is not None) if self.has_trees else 0
            visible = np.zeros((self.num_tokens, 3 + deepest), np.int64)
            visible[:, 0] = self._spans[:, 0]
            if window is not None:
                visible[:, 0] += np.maximum(0, self._positions - window + 1)
            visible[:, 1] = self.places + 1
            row = 0
            for span in self.spans:
                if span.parents is not None:
                    _see_ancestors(visible[row : row + span.count], span, window)
                row += span.count
            self._visible[window] = visible
        return self._visible[window]

    def _mask(self, number: int, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """[groups * count, places read] of a span: what is added to its scores, 0 or minus infinity; for each
        query head that shares keys."""
        key = (number, window, groups)
        if key not in self._masks:
            span = self.spans[number]
            own = to_device(span.depths + span.num_computed_tokens, self.device)
            begin = _begin(span, window)
            read = torch.cat([torch.arange(begin, span.num_computed_tokens, device=self.device), own])  # their positions
            seen = read <= own[:, None]
            if span.parents is not None:
                seen[:, span.num_computed_tokens - begin :] &= to_device(span.ancestors, self.device)
            if window is not None:
                seen &= read > own[:, None] - window
            self._masks[key] = additive(seen, dtype).repeat(groups, 1)
        return self._masks[key]

    # --- attention --------------------------------------------------------------------------------

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """Store the tokens' keys and values, and attend: [N, H, D].

        layer: whose part of the cache it is.
        queries: [N, H, D].
        keys, values: [N, KV, D].
        scale: of the scores.
        window: a token sees itself and what stands less than `window` positions
            before it; None for everything.
        softcap: scores become cap * tanh(score / cap) (Gemma 2).
        """
        held_keys, held_values = self.cache.layer(layer, keys.shape[1], keys.shape[2], values.shape[2], keys)
        if len(self.spans) == 1:
            first = self.spans[0].first_place
            held_keys[first : first + len(keys)] = keys
            held_values[first : first + len(values)] = values
        else:
            held_keys.index_copy_(0, self._places, keys)
            held_values.index_copy_(0, self._places, values)
        return self.attend_stored(held_keys, held_values, queries, scale, window, softcap)

    def attend_stored(
        self, held_keys: Tensor, held_values: Tensor, queries: Tensor, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """`attend` with the tokens' keys and values stored already.

        held_keys, held_values: a layer of the cache, [places, KV, D].
        """
        outputs = []
        groups = queries.shape[1] // held_keys.shape[1]
        row = 0
        for number, span in enumerate(self.spans):
            begin, end = _begin(span, window), span.num_computed_tokens + span.count
            here = slice(span.region.start + begin, span.region.start + end)
            q = queries[row : row + span.count].transpose(0, 1)[None]
            k, v = held_keys[here].transpose(0, 1)[None], held_values[here].transpose(0, 1)[None]
            plain = span.parents is None and begin == span.num_computed_tokens and (window is None or window >= span.count)
            if plain and span.count > 1 and softcap is None:  # without a past the mask need not be in memory
                output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
            else:
                mask = None if span.count == 1 else self._mask(number, window, groups, queries.dtype)
                output = grouped_attention(q, k, v, mask, scale, softcap)
            outputs.append(output[0].transpose(0, 1))
            row += span.count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _begin(span: QuerySpan, window: int | None) -> int:
    """The first position that any new token of a span sees."""
    return 0 if window is None else max(0, span.num_computed_tokens - window + 1)


def _see_ancestors(visible: np.ndarray, span: QuerySpan, window: int | None) -> None:
    """Make rows of `TokenBatch.visible`, [count, 3 + A], filled in as for a chain, those of a tree."""
    visible[:, 1] = span.first_place
    visible[:, 0] = np.minimum(visible[:, 0], visible[:, 1])
    seen = span.ancestors if window is None else span.ancestors & (span.depths[:, None] - span.depths < window)
    counts = seen.sum(1)
    visible[:, 2] = counts
    rows, tokens = np.nonzero(seen)  # row by row; a parent comes before its children
    visible[rows, 3 + np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)] = span.first_place + tokens


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on a device, without waiting for what the device is doing."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as attention kernels want it: 0 where True, minus infinity elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None = None) -> Tensor:
    """[B, H, T, D] of q [B, H, T, D] and k, v [B, KV, S, D].

    mask: [.., H / KV * T, S], added to the scores: once for each query head that shares a key head.
    softcap: as for `TokenBatch.attend`; torch has no kernel for it.

    The query heads that share a key head become more rows of it: with a mask, torch's kernels for
    grouped heads would copy k and v.
    """
    sequences, heads, tokens, width = q.shape
    q = q.reshape(sequences, k.shape[1], -1, width)
    if softcap is None:
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    else:
        scores = torch.tanh(q @ k.transpose(2, 3) * scale / softcap) * softcap
        if mask is not None:
            scores = scores + mask
        output = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    return output.reshape(sequences, heads, tokens, -1)
