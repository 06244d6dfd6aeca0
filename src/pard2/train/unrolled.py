"""The training pass of an EAGLE-3 draft: chains are unrolled, depth by depth (METHOD: section 9).

The slots are those of `SlotLayout`, seen from the other side: slot (a, d) of a document holds the TRUE token
x[a + d] and, at depth 0, the target's feature of the token before, f[a - 1]; deeper, the output of slot (a, d
- 1). In EAGLE-3's own numbers its anchor is a - 1. A document's first token, which no feature precedes, makes
no slot.

The slots of a depth attend to those of depth 0 up to their anchor, and to their own chains.
"""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pard2.models.eagle3 import Eagle3Draft
from pard2.objective.layout import SlotLayout
from pard2.train.attention import AttentionKind, attend_spans

FIRST_ANCHOR = 1  # the first position of a document that has a slot


def unrolled_states(
    draft: Eagle3Draft, token_ids: Tensor, features: Tensor, layout: SlotLayout, kind: AttentionKind, checkpointing: bool = False
) -> Tensor:
    """[S, hidden] states after the final norm at every slot; zero for the slots of documents' first tokens.

    token_ids: [N] of the packed sequence.
    features: [N, F], f of each token.
    layout: the S slots; every chain has all depths up to its last.
    kind: of attention.
    checkpointing: compute each depth again in the backward pass.
    """
    step = partial(_one_depth, draft, kind)
    found, places = [], []
    real = anchors = feature = torch.empty(0)
    real_keys: tuple[Tensor, ...] = ()
    chains: tuple[Tensor, ...] = ()
    for depth in range(int(layout.depth.max()) + 1):
        slots = torch.nonzero((layout.depth == depth) & (layout.anchor >= FIRST_ANCHOR))[:, 0]
        if not len(slots):
            break
        before, anchors = anchors, layout.anchor_index[slots]  # rising
        row = torch.arange(len(slots), device=slots.device)
        if depth == 0:
            real = anchors
            # The residual stream keeps the weights' precision where products have less.
            feature = draft.fuse(features[anchors - 1]).to(draft.norm.weight.dtype)
            spans = torch.stack([torch.searchsorted(real, layout.start[slots]), row + 1, row + 1, row + 1], 1)
        else:
            parent = torch.searchsorted(before, anchors)
            feature, chains = feature[parent], tuple(chain[parent] for chain in chains)
            begin, end = torch.searchsorted(real, layout.start[slots]), torch.searchsorted(real, anchors) + 1
            spans = torch.stack([begin, end, len(real) + depth * row, len(real) + depth * (row + 1)], 1)
        arguments = (token_ids[anchors + depth], layout.position[slots] - 1, feature, spans, *real_keys, *chains)
        final, feature, *own = checkpoint(step, *arguments, use_reentrant=False) if checkpointing else step(*arguments)
        if depth == 0:
            real_keys, chains = tuple(own), tuple(one[:, None][:, :0] for one in own)
        else:
            chains = tuple(torch.cat([chain, one[:, None]], 1) for chain, one in zip(chains, own, strict=True))
        found.append(final)
        places.append(slots)
    states = torch.cat(found)
    return states.new_zeros(len(layout), states.shape[1]).index_copy(0, torch.cat(places), states)


def _one_depth(
    draft: Eagle3Draft, kind: AttentionKind, token_ids: Tensor, positions: Tensor, feature: Tensor, spans: Tensor, *past: Tensor
) -> tuple[Tensor, ...]:
    """States of n slots, the next depth's features, and their keys and values [n, KV, D].

    spans: [n, 4] as of `key_spans`, over the keys of depth 0 and, behind them, the chains'.
    past: at depth d > 0 keys and values of depth 0, [R, KV, D] each, and of the chains, [n, d - 1, KV, D].
    """
    own: list[Tensor] = []

    def attend(q: Tensor, *new: Tensor) -> Tensor:
        own.extend(new)
        seen = new
        if past:
            chains = (torch.cat([chain, one[:, None]], 1).flatten(0, 1) for chain, one in zip(past[2:], new, strict=True))
            seen = tuple(torch.cat(both) for both in zip(past[:2], chains, strict=True))
        return attend_spans(kind, q, seen[0], seen[1], spans, draft.midlayer.self_attn.head_dim**-0.5)

    return *draft.states(token_ids, feature, positions, attend), *own
