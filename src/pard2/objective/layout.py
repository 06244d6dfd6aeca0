"""Slots: the inputs of one training pass of the draft (METHOD: section 3).

Slot (a, d) has anchor a and depth d. It stands at position a + d, holds the real token x[a] if d = 0 and the
mask token otherwise, and predicts x[a + d + 1]. Example: a document of 5 tokens, of which x2, x3 and x4 are
the answer, with K = 3 and no mask dropped by COD:

    slot  (a, d)  position  input  feature  predicts
    0     (0, 0)  0         x0     0        x1        not trained: x1 belongs to the prompt
    1     (1, 0)  1         x1     f0       x2
    2     (2, 0)  2         x2     f1       x3
    3     (3, 0)  3         x3     f2       x4
    4     (4, 0)  4         x4     f3       -         not trained: the document ends here
    5     (1, 1)  2         mask   f0       x3
    6     (1, 2)  3         mask   f0       x4
    7     (2, 1)  3         mask   f1       x4

Who sees whom (a line for each query, a column for each key): every real token up to the own anchor, and the
masks of the own chain up to the slot itself.

    slot  (a, d)  0 1 2 3 4   5 6 7
    0     (0, 0)  x . . . .   . . .
    1     (1, 0)  x x . . .   . . .
    2     (2, 0)  x x x . .   . . .
    3     (3, 0)  x x x x .   . . .
    4     (4, 0)  x x x x x   . . .
    5     (1, 1)  x x . . .   x . .
    6     (1, 2)  x x . . .   x x .
    7     (2, 1)  x x x . .   . . x

A packed sequence holds several documents one after the other; anchors and positions count from each
document's start, and no slot sees another document. The published code also trains chains of masks that
follow no token at all; their anchor is -1 here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlotLayout:
    """The S slots of a packed sequence of N tokens: real tokens, then masks by document, anchor, depth.

    In this order a slot sees at most two ranges of slots, the real tokens of its document up to its anchor
    and its own chain, and neighbouring slots see nearly the same (`key_spans`).

    document: [S] int64, which document of the packed sequence.
    anchor: [S] int64, a position within the document.
    depth: [S] int64.
    start: [S] int64, index in the packed sequence of the document's first token.
    """

    document: Tensor
    anchor: Tensor
    depth: Tensor
    start: Tensor

    def __len__(self) -> int:
        return self.depth.shape[0]

    @property
    def position(self) -> Tensor:
        """[S] position id of each slot within its document."""
        return self.anchor + self.depth

    @property
    def anchor_index(self) -> Tensor:
        """[S] index in the packed sequence of each slot's anchor token."""
        return self.start + self.anchor

    @property
    def predicted_index(self) -> Tensor:
        """[S] index in the packed sequence of the token that each slot predicts.

        That of a document's last real token lies past the document's end.
        """
        return self.start + self.anchor + self.depth + 1

    def to(self, device: torch.device | str) -> "SlotLayout":
        return SlotLayout(self.document.to(device), self.anchor.to(device), self.depth.to(device), self.start.to(device))


def build_layout(lengths: list[int], kept: list[list[Tensor]]) -> SlotLayout:
    """The slots of a packed sequence. All real tokens are slots of depth 0.

    lengths: tokens of each document.
    kept: kept[i][d - 1] holds the sorted anchors of document i that keep a mask at depth d, each list
        contained in the one before.
    """
    tokens = [(torch.arange(length), torch.zeros(length, dtype=torch.long)) for length in lengths]
    masks = [_chains(anchors) for anchors in kept]
    sizes = torch.tensor(lengths)
    parts = [*tokens, *masks]
    document = torch.arange(len(lengths)).repeat(2).repeat_interleave(torch.tensor([len(anchor) for anchor, _ in parts]))
    anchor, depth = (torch.cat(part) for part in zip(*parts, strict=True))
    return SlotLayout(document, anchor, depth, (sizes.cumsum(0) - sizes)[document])


def _chains(kept: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Anchor and depth of a document's masks, chain by chain."""
    anchor = torch.cat([torch.empty(0, dtype=torch.long), *kept])
    depth = torch.arange(1, len(kept) + 1).repeat_interleave(torch.tensor([len(anchors) for anchors in kept], dtype=torch.long))
    order = anchor.argsort(stable=True)
    return anchor[order], depth[order]


def attention_mask(layout: SlotLayout) -> Tensor:
    """[S, S] bool, queries by keys, True where the query may see the key.

    same document and ((d_k = 0 and a_k <= a_q) or (a_k = a_q and d_k <= d_q))
    """
    document, anchor, depth = layout.document, layout.anchor, layout.depth
    same_document = document[:, None] == document[None, :]
    real_past = (depth == 0)[None, :] & (anchor[None, :] <= anchor[:, None])
    own_chain = (anchor[None, :] == anchor[:, None]) & (depth[None, :] <= depth[:, None])
    return same_document & (real_past | own_chain)


def key_spans(layout: SlotLayout) -> Tensor:
    """[S, 4] int64, the same as `attention_mask` in four numbers a slot: begin, end, chain, stop.

    A slot sees the real tokens begin .. end - 1 and the masks chain .. stop - 1, of which it is the last one.
    A
    real token sees no mask: its chain is its stop.
    """
    stop = torch.arange(1, len(layout) + 1, device=layout.depth.device)
    return torch.stack([layout.start, layout.anchor_index + 1, stop - layout.depth, stop], -1)


def spans_mask(spans: Tensor, keys: int) -> Tensor:
    """[Q, keys] bool, True where the query may see the key.

    spans: [Q, 4] as of `key_spans`, of any queries.
    """
    begin, end, chain, stop = spans[:, :, None].unbind(1)
    key = torch.arange(keys, device=spans.device)
    return ((key >= begin) & (key < end)) | ((key >= chain) & (key < stop))


def slot_tokens(layout: SlotLayout, token_ids: Tensor, mask_token: int) -> Tensor:
    """[S] input ids: the anchor's token at depth 0, the mask token deeper.

    token_ids: [N] of the packed sequence.
    """
    return torch.where(layout.depth == 0, token_ids[layout.anchor_index], mask_token)


def slot_features(layout: SlotLayout, features: Tensor) -> Tensor:
    """[S, F]: f[a - 1] for every slot of anchor a, zero where no token precedes it (METHOD: section 2).

    features: [N, F] of the packed sequence's tokens.
    """
    before = features[(layout.anchor_index - 1).clamp(min=0)]
    return torch.where((layout.anchor < 1)[:, None], torch.zeros((), dtype=before.dtype, device=before.device), before)
