"""Slots: what a sequence becomes when every anchor carries its chain of masks (METHOD: section 3).

Slot (a, d) sits at position a+d, holds the real token x[a] if d = 0 and a mask otherwise, and
predicts x[a+d+1]. A row may hold several documents; positions count from each document's start.
The reference also trains chains of masks that follow no token at all; they are anchor -1 here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlotLayout:
    """S slots over a row of N tokens.

    document, anchor, depth: [S] int64. `anchor` is a position within the document.
    start: [S], index in the row of the document's first token.
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
        """[S] index in the row of each slot's anchor token."""
        return self.start + self.anchor

    @property
    def predicted_index(self) -> Tensor:
        """[S] index in the row of the token that each slot predicts; the last real token of a document points past its end."""
        return self.start + self.anchor + self.depth + 1


def build_layout(lengths: list[int], kept: list[list[Tensor]]) -> SlotLayout:
    """Slots of a row that concatenates documents of these lengths.

    kept[i][d - 1]: anchors of document i that keep a mask at depth d. All real tokens are slots of
    depth 0. Slots are ordered by document, then depth, then anchor.
    """
    document, anchor, depth, start = [], [], [], []
    offset = 0
    for index, (length, masks) in enumerate(zip(lengths, kept, strict=True)):
        for d, anchors in enumerate([torch.arange(length), *masks]):
            document.append(torch.full_like(anchors, index))
            anchor.append(anchors)
            depth.append(torch.full_like(anchors, d))
            start.append(torch.full_like(anchors, offset))
        offset += length
    return SlotLayout(torch.cat(document), torch.cat(anchor), torch.cat(depth), torch.cat(start))


def attention_mask(layout: SlotLayout) -> Tensor:
    """[S, S] bool, True where the slot of the row may see the slot of the column.

    same document and ((d_k = 0 and a_k <= a_q) or (a_k = a_q and d_k <= d_q)).
    """
    document, anchor, depth = layout.document, layout.anchor, layout.depth
    same_document = document[:, None] == document[None, :]
    real_past = (depth == 0)[None, :] & (anchor[None, :] <= anchor[:, None])
    own_chain = (anchor[None, :] == anchor[:, None]) & (depth[None, :] <= depth[:, None])
    return same_document & (real_past | own_chain)


def slot_tokens(layout: SlotLayout, token_ids: Tensor, mask_token: int) -> Tensor:
    """[S] input ids: the anchor's token at depth 0, the mask token deeper. token_ids: [N]."""
    return torch.where(layout.depth == 0, token_ids[layout.anchor_index], mask_token)


def slot_features(layout: SlotLayout, features: Tensor) -> Tensor:
    """[S, F]: f[a-1] for every slot of anchor a, zero where there is no token before the anchor (METHOD: section 2). features: [N, F]."""
    rows = features[(layout.anchor_index - 1).clamp(min=0)]
    return torch.where((layout.anchor < 1)[:, None], torch.zeros((), dtype=rows.dtype, device=rows.device), rows)
