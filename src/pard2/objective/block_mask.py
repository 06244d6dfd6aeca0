"""The mask over slots for FlexAttention: which blocks of keys each block of queries needs, or sees whole."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # FlexAttention's own block, of queries and of keys


def block_structure(spans: Tensor, size: int, keys: int | None = None) -> tuple[Tensor, Tensor]:
    """needed, full: [Q', K'] bool, blocks of queries by blocks of keys, Q' = ceil(Q / size), K' = ceil(keys /
    size).

    Needed: some query sees some key of the block; full: every query sees every key. A last block that the
    queries or keys do not fill is never full. A slot sees two ranges of keys, so counting ranges takes
    O(Q + Q' K').

    spans: [Q, 4] of `key_spans`.
    size: slots of a block.
    keys: how many there are; None for as many as queries.
    """
    begin, end, chain, stop = spans.unbind(-1)
    query = torch.arange(len(spans), device=spans.device)
    shape = -(-len(spans) // size), -(-(keys or len(spans)) // size)
    touched = contained = torch.zeros(shape, dtype=torch.long, device=spans.device)
    for first, last in ((begin, end), (chain, stop)):  # the tokens and the masks that a slot sees
        left = first // size
        touched = touched + _count(query // size, left, torch.where(last > first, (last - 1) // size + 1, left), shape)
        left = (first + size - 1) // size
        contained = contained + _count(query // size, left, torch.maximum(last // size, left), shape)
    return touched > 0, contained == size


def _count(rows: Tensor, first: Tensor, stop: Tensor, shape: tuple[int, int]) -> Tensor:
    """A table of this shape: how many of the ranges (row, first .. stop - 1) hold each column."""
    edges = torch.zeros(shape[0], shape[1] + 1, dtype=torch.long, device=rows.device)
    one = torch.ones_like(rows)
    edges.index_put_((rows, first), one, accumulate=True)
    edges.index_put_((rows, stop), -one, accumulate=True)
    return edges[:, :-1].cumsum(1)


def block_mask(spans: Tensor, size: int = BLOCK, keys: int | None = None) -> BlockMask:
    """`attention_mask` for FlexAttention, of the shape (1, 1, Q, keys), made without a tensor of so many
    numbers.

    spans: [Q, 4] of `key_spans`.
    size: slots of a block.
    keys: how many there are; None for as many as queries.
    """
    needed, full = block_structure(spans, size, keys)
    begin, end, chain, stop = spans.T.contiguous().unbind(0)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((key >= begin[query]) & (key < end[query])) | ((key >= chain[query]) & (key < stop[query]))

    lengths = (len(spans), keys or len(spans))
    return BlockMask.from_kv_blocks(*_listed(needed & ~full), *_listed(full), BLOCK_SIZE=size, mask_mod=sees, seq_lengths=lengths)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, [1, 1, rows], and all columns, these first, [1, 1, rows, columns];
    int32."""
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], columns.int()[None, None]
