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
    """S slots over a row of N tokens: first the N real tokens in the order of the row, then the masks by document, anchor and depth.

    In this order a slot sees at most two stretches of slots, the tokens of its document up to its anchor and its own chain, and
    slots side by side see nearly the same (`key_spans`).

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

    def to(self, device: torch.device | str) -> "SlotLayout":
        return SlotLayout(self.document.to(device), self.anchor.to(device), self.depth.to(device), self.start.to(device))


def build_layout(lengths: list[int], kept: list[list[Tensor]]) -> SlotLayout:
    """Slots of a row that concatenates documents of these lengths.

    kept[i][d - 1]: sorted anchors of document i that keep a mask at depth d, each list contained in the one before.
    All real tokens are slots of depth 0.
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
    """[S, S] bool, True where the slot of the row may see the slot of the column.

    same document and ((d_k = 0 and a_k <= a_q) or (a_k = a_q and d_k <= d_q)).
    """
    document, anchor, depth = layout.document, layout.anchor, layout.depth
    same_document = document[:, None] == document[None, :]
    real_past = (depth == 0)[None, :] & (anchor[None, :] <= anchor[:, None])
    own_chain = (anchor[None, :] == anchor[:, None]) & (depth[None, :] <= depth[:, None])
    return same_document & (real_past | own_chain)


def key_spans(layout: SlotLayout) -> Tensor:
    """[S, 3] int64, `attention_mask` in S rows: slot i sees the slots begin .. end - 1, real tokens, and chain .. i, masks.

    Columns: begin, end, chain. For a real token, which sees no mask, chain is i + 1.
    """
    chain = torch.arange(1, len(layout) + 1, device=layout.depth.device) - layout.depth
    return torch.stack([layout.start, layout.anchor_index + 1, chain], -1)


def slot_tokens(layout: SlotLayout, token_ids: Tensor, mask_token: int) -> Tensor:
    """[S] input ids: the anchor's token at depth 0, the mask token deeper. token_ids: [N]."""
    return torch.where(layout.depth == 0, token_ids[layout.anchor_index], mask_token)


def slot_features(layout: SlotLayout, features: Tensor) -> Tensor:
    """[S, F]: f[a-1] for every slot of anchor a, zero where there is no token before the anchor (METHOD: section 2). features: [N, F]."""
    rows = features[(layout.anchor_index - 1).clamp(min=0)]
    return torch.where((layout.anchor < 1)[:, None], torch.zeros((), dtype=rows.dtype, device=rows.device), rows)
