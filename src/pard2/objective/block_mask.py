"""The mask over slots for FlexAttention: which blocks of keys each block of queries needs, or sees whole."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # FlexAttention's own block, of queries and of keys


def block_structure(spans: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """needed, full: [B, B] bool, blocks of queries by blocks of keys, B = ceil(S / size).

    Needed: some query sees some key of the block; full: every query sees every key. A last block that S does
    not fill is never full. A slot sees two ranges of keys, so counting ranges takes O(S + B^2).

    spans: [S, 3] of `key_spans`.
    size: slots of a block.
    """
    begin, end, chain = spans.unbind(-1)
    query = torch.arange(len(spans), device=spans.device)
    blocks = -(-len(spans) // size)
    touched = contained = torch.zeros(blocks, blocks, dtype=torch.long, device=spans.device)
    for first, stop in ((begin, end), (chain, query + 1)):  # the tokens and the masks that a slot sees
        left = first // size
        touched = touched + _count(query // size, left, torch.where(stop > first, (stop - 1) // size + 1, left), blocks)
        left = (first + size - 1) // size
        contained = contained + _count(query // size, left, torch.maximum(stop // size, left), blocks)
    return touched > 0, contained == size


def _count(rows: Tensor, first: Tensor, stop: Tensor, blocks: int) -> Tensor:
    """[blocks, blocks]: how many of the ranges (row, first .. stop - 1) hold each column."""
    edges = torch.zeros(blocks, blocks + 1, dtype=torch.long, device=rows.device)
    one = torch.ones_like(rows)
    edges.index_put_((rows, first), one, accumulate=True)
    edges.index_put_((rows, stop), -one, accumulate=True)
    return edges[:, :-1].cumsum(1)


def block_mask(spans: Tensor, size: int = BLOCK) -> BlockMask:
    """`attention_mask` for FlexAttention, of the shape (1, 1, S, S), made without a tensor of S x S numbers.

    spans: [S, 3] of `key_spans`.
    size: slots of a block.
    """
    needed, full = block_structure(spans, size)
    begin, end, chain = spans.T.contiguous().unbind(0)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((key >= begin[query]) & (key < end[query])) | ((key >= chain[query]) & (key <= query))

    slots = len(spans)
    return BlockMask.from_kv_blocks(*_listed(needed & ~full), *_listed(full), BLOCK_SIZE=size, mask_mod=sees, seq_lengths=(slots, slots))


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, [1, 1, B], and all columns, these first, [1, 1, B, B]; int32."""
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], columns.int()[None, None]
