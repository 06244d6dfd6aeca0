"""Attention over slots without a square mask, in plain matrix products; training on a CPU uses it.

Queries are taken in blocks of one document and one kind, real tokens or masks. By the order of slots
(`SlotLayout`) such a block sees two ranges of keys only: real tokens begin .. end - 1, of which all before
`clear` are seen by every query, and chains' slots chain .. chain_stop - 1. Scores exist for one block at a
time and are computed again in the backward pass.

Shapes: H query heads, KV key-value heads, G = H / KV, Q queries, S keys, D head_dim, V head_dim of the
values; in a block T queries and J keys. Where all slots are queries and keys, Q is S. Inside, the G query
heads that share a key head are G rows of each slot: a block's queries are contiguous, and no head needs a
copy of the keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128  # queries: fewer make products too small to be fast, more meet too many masks of other chains


@dataclass(frozen=True, kw_only=True)
class QueryBlock:
    """Queries first .. stop - 1 and the ranges of keys that they see: begin .. end - 1 and chain ..
    chain_stop - 1.

    Keys begin .. clear - 1 are seen by every query of the block.
    """

    first: int
    stop: int
    begin: int
    clear: int
    end: int
    chain: int
    chain_stop: int


def query_blocks(spans: Tensor, size: int) -> Iterator[QueryBlock]:
    """All queries in blocks of at most `size`, each of one document and one kind, real tokens or masks.

    spans: [Q, 4] of `key_spans`.
    """
    is_mask = spans[:, 2] < spans[:, 3]
    kinds = 2 * spans[:, 0] + is_mask  # a number of its own for each document's tokens, and for its masks
    first = 0
    for count in torch.unique_consecutive(kinds, return_counts=True)[1].tolist():
        pieces = -(-count // size)
        edges = [first + count * piece // pieces for piece in range(pieces + 1)]
        first += count
        firsts, lasts = spans[edges[:-1]].tolist(), spans[[edge - 1 for edge in edges[1:]]].tolist()
        for left, right, (begin, clear, chain, chain_end), (_, end, _, stop) in zip(edges[:-1], edges[1:], firsts, lasts, strict=True):
            chain = chain if chain < chain_end else stop  # real tokens see none
            yield QueryBlock(first=left, stop=right, begin=begin, clear=clear, end=end, chain=chain, chain_stop=stop)


def slot_attention(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float, block: int = BLOCK) -> Tensor:
    """[H, Q, V] softmax(scale * Q K^T) V under the mask that `spans` stands for, with gradients.

    Products and softmax are in float32, or float64 for float64 inputs. Memory is linear in Q and S.

    query: [H, Q, D].
    key: [KV, S, D].
    value: [KV, S, V].
    spans: [Q, 4] of `key_spans`.
    scale: factor of the scores.
    block: queries taken at once.
    """
    return _SlotAttention.apply(query, key, value, spans, scale, block)


class _SlotAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float, size: int) -> Tensor:
        ctx.save_for_backward(query, key, value, spans)
        ctx.scale, ctx.size = scale, size
        queries, keys, values = _by_key_head(query, len(key)) * scale, _precise(key), _precise(value)
        output = queries.new_empty(*queries.shape[:2], value.shape[-1])
        sharing = len(query) // len(key)
        for block in query_blocks(spans, size):
            rows = slice(sharing * block.first, sharing * block.stop)
            output[:, rows] = _weights(queries[:, rows], _seen(keys, block), spans, block) @ _seen(values, block)
        return _by_head(output, len(query)).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        query, key, value, spans = ctx.saved_tensors
        queries, keys, values = _by_key_head(query, len(key)) * ctx.scale, _precise(key), _precise(value)
        grad_output = _by_key_head(grads[0], len(key))
        grad_query, grad_key, grad_value = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        sharing = len(query) // len(key)
        for block in query_blocks(spans, ctx.size):
            rows = slice(sharing * block.first, sharing * block.stop)
            q, k, grad = queries[:, rows], _seen(keys, block), grad_output[:, rows]
            weights = _weights(q, k, spans, block)
            _add_to_seen(grad_value, weights.mT @ grad, block)
            # through the softmax: dS = P * (dP - sum(P * dP))
            grad_scores = grad @ _seen(values, block).mT
            grad_scores.sub_(torch.linalg.vecdot(weights, grad_scores)[..., None]).mul_(weights)
            grad_query[:, rows] = grad_scores @ k
            _add_to_seen(grad_key, grad_scores.mT @ q, block)
        grad_query = _by_head(grad_query, len(query)) * ctx.scale
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _weights(q: Tensor, k: Tensor, spans: Tensor, block: QueryBlock) -> Tensor:
    """[KV, T * G, J] softmax of a block's scores over the keys that each query sees."""
    scores = q @ k.mT
    ranges = (block.clear, block.end), (block.chain, block.chain_stop)
    keys = torch.cat([torch.arange(begin, end, device=spans.device) for begin, end in ranges])
    _, end, chain, stop = spans[block.first : block.stop, :, None].unbind(1)
    hidden = (keys >= end) & ((keys < chain) | (keys >= stop))
    scores.unflatten(1, (len(end), -1))[..., block.clear - block.begin :].masked_fill_(hidden[:, None], float("-inf"))
    return scores.softmax(-1)


def _by_key_head(rows: Tensor, groups: int) -> Tensor:
    """[KV, Q * G, D] of [H, Q, D]."""
    return _precise(rows).unflatten(0, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """[H, Q, D] of [KV, Q * G, D], slot by slot in memory, as the next layer reads it."""
    slots = rows.shape[1] * len(rows) // heads
    return rows.unflatten(1, (slots, -1)).transpose(0, 1).flatten(1, 2).transpose(0, 1)


def _seen(keys: Tensor, block: QueryBlock) -> Tensor:
    """[KV, J, D] of [KV, S, D]."""
    return torch.cat([keys[:, block.begin : block.end], keys[:, block.chain : block.chain_stop]], 1)


def _add_to_seen(total: Tensor, part: Tensor, block: QueryBlock) -> None:
    real = block.end - block.begin
    total[:, block.begin : block.end] += part[:, :real]
    total[:, block.chain : block.chain_stop] += part[:, real:]


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
