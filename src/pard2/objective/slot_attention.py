"""Attention over slots without a square mask, in plain matrix products: what trains on a CPU.

Queries are taken in blocks of one document and one kind, tokens or masks. By the order of slots (`SlotLayout`) such a block
looks at two stretches of keys alone: real tokens begin .. end - 1, of which all before `clear` are seen by every
query, and masks chain .. stop - 1. Scores exist for one block at a time, and are made anew in the backward pass.

Shapes: H query heads, KV key-value heads, S slots, D head_dim, V head_dim of the values; in a block T queries and J keys. Query
heads that share a key head lie side by side, so that H x T rows are KV x (H / KV * T) and keys need no copy for each head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128  # queries: fewer are too small for fast products, more look at too many masks that are not of their chain


@dataclass(frozen=True)
class QueryBlock:
    """Slots first .. stop - 1 and the stretches of keys that they see: begin .. end - 1 and chain .. stop - 1.

    Keys begin .. clear - 1 are seen by every query of the block.
    """

    first: int
    stop: int
    begin: int
    clear: int
    end: int
    chain: int


def query_blocks(spans: Tensor, size: int) -> Iterator[QueryBlock]:
    """All slots in blocks of at most `size` queries, none of which spans documents, or tokens and masks. spans: [S, 3] of `key_spans`."""
    is_mask = spans[:, 2] <= torch.arange(len(spans), device=spans.device)
    kinds = 2 * spans[:, 0] + is_mask  # a number of its own for each document's tokens, and for its masks
    first = 0
    for count in torch.unique_consecutive(kinds, return_counts=True)[1].tolist():
        pieces = -(-count // size)
        edges = [first + count * piece // pieces for piece in range(pieces + 1)]
        first += count
        firsts, lasts = spans[edges[:-1]].tolist(), spans[[edge - 1 for edge in edges[1:]]].tolist()
        for left, right, (begin, clear, chain), (_, end, _) in zip(edges[:-1], edges[1:], firsts, lasts, strict=True):
            yield QueryBlock(left, right, begin, clear, end, chain if chain <= left else right)  # tokens see no mask


def slot_attention(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float, block: int = BLOCK) -> Tensor:
    """[H, S, V] softmax(scale * Q K^T) V under the mask that `spans` stands for, with gradients.

    query: [H, S, D]. key: [KV, S, D]. value: [KV, S, V]. spans: [S, 3] of `key_spans`. block: queries taken at once. Products and softmax are of float32 (float64 for
    inputs of it), whatever the inputs; memory grows with S alone.
    """
    return _SlotAttention.apply(query, key, value, spans, scale, block)


class _SlotAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float, size: int) -> Tensor:
        ctx.save_for_backward(query, key, value, spans)
        ctx.scale, ctx.size = scale, size
        output = query.new_empty(query.shape[1], len(query), value.shape[-1]).transpose(0, 1)  # heads side by side, as the next layer wants them
        for block in query_blocks(spans, size):
            weights = _weights(_rows(query, len(key), block) * scale, _keys(key, block), spans, block)
            output[:, block.first : block.stop] = (weights @ _keys(value, block)).view(len(query), -1, value.shape[-1])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        query, key, value, spans = ctx.saved_tensors
        groups, width = len(key), query.shape[-1]
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros(x.shape, dtype=_precise(x), device=x.device) for x in (key, value))
        for block in query_blocks(spans, ctx.size):
            q, k, grad = _rows(query, groups, block) * ctx.scale, _keys(key, block), _rows(grads[0], groups, block)
            weights = _weights(q, k, spans, block)
            _add_to_keys(grad_value, weights.mT @ grad, block)
            # through the softmax: dS = P * (dP - sum(P * dP))
            grad_scores = grad @ _keys(value, block).mT
            grad_scores.sub_(torch.linalg.vecdot(weights, grad_scores)[..., None]).mul_(weights)
            grad_query[:, block.first : block.stop] = (grad_scores @ k).mul_(ctx.scale).view(len(query), -1, width)
            _add_to_keys(grad_key, grad_scores.mT @ q, block)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _weights(q: Tensor, k: Tensor, spans: Tensor, block: QueryBlock) -> Tensor:
    """[KV, H / KV * T, J] softmax of the scores of a block, where it may look."""
    scores = q @ k.mT
    queries = torch.arange(block.first, block.stop, device=spans.device)[:, None]
    stretches = (block.clear, block.end), (block.chain, block.stop)
    keys = torch.cat([torch.arange(begin, end, device=spans.device) for begin, end in stretches])
    _, end, chain = spans[block.first : block.stop, :, None].unbind(1)
    hidden = (keys >= end) & ((keys < chain) | (keys > queries))
    scores.view(-1, len(queries), scores.shape[-1])[..., block.clear - block.begin :].masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1)


def _rows(queries: Tensor, groups: int, block: QueryBlock) -> Tensor:
    """[KV, H / KV * T, D] of [H, S, D]."""
    return queries[:, block.first : block.stop].to(_precise(queries)).reshape(groups, -1, queries.shape[-1])


def _keys(keys: Tensor, block: QueryBlock) -> Tensor:
    """[KV, J, D] of [KV, S, D]."""
    return torch.cat([keys[:, block.begin : block.end], keys[:, block.chain : block.stop]], 1).to(_precise(keys))


def _add_to_keys(total: Tensor, part: Tensor, block: QueryBlock) -> None:
    real = block.end - block.begin
    total[:, block.begin : block.end] += part[:, :real]
    total[:, block.chain : block.stop] += part[:, real:]


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
