"""The draft's pass over slots, by three kinds of attention that compute the same.

dense   the readable mask [S, S], through SDPA
blocks  `slot_attention`, for CPUs
flex    FlexAttention with a `block_mask`, for GPUs

transformers hands a mask of four dimensions to its attention function as it is, so for the two fast kinds the
spans of `key_spans`, as [1, 1, S, 4], are passed as the mask. They come along when activation checkpointing
runs a layer again, and an attention that does not know them fails rather than sees too much.
"""

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pard2.errors import Pard2Error
from pard2.models.draft import Draft
from pard2.objective.block_mask import block_mask
from pard2.objective.layout import SlotLayout, attention_mask, key_spans, spans_mask
from pard2.objective.slot_attention import slot_attention

AttentionKind = Literal["dense", "blocks", "flex"]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]

_NAMES = {"blocks": "pard2_blocks", "flex": "pard2_flex"}


def attention_kind(wanted: Literal["auto", "blocks", "flex", "dense"], device: torch.device) -> AttentionKind:
    """What `loop.attention` means on a device.

    Raises `Pard2Error` for flex without a GPU: there it has no gradients.
    """
    if wanted == "flex" and device.type != "cuda":
        raise Pard2Error(f"loop.attention=flex trains on a GPU alone, not on {device}; set loop.attention=blocks")
    if wanted == "auto":
        return "flex" if device.type == "cuda" else "blocks"
    return wanted


def draft_states(
    draft: Draft, token_ids: Tensor, features: Tensor | None, layout: SlotLayout, kind: AttentionKind, with_features: Tensor | None = None
) -> Tensor:
    """[S, hidden] final states of the draft at every slot of a packed sequence.

    token_ids: [S] of `slot_tokens`.
    features: [S, F] of `slot_features`, or None where all documents are trained target-independent.
    with_features: [S] bool, as for `Draft.embed`.

    The first pass of a fast kind replaces the draft's SDPA by an attention that is still SDPA wherever it
    gets no spans. Raises `Pard2Error` for a draft whose attention cannot be replaced so.
    """
    if kind == "dense":
        mask = attention_mask(layout)
    else:
        mask = key_spans(layout)
        if draft.config._attn_implementation not in ("sdpa", *_NAMES.values()):
            raise Pard2Error(f"{draft.name!r} ({type(draft.lm).__name__}) lacks SDPA attention, which training needs; name another draft.path")
        draft.config._attn_implementation = _NAMES[kind]
    return draft.states(
        token_ids[None],
        None if features is None else features[None],
        mask[None, None],
        layout.position[None],
        None if with_features is None else with_features[None],
    )[0]


def attend_spans(kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> Tensor:
    """[Q, H, D] of queries that see some of the keys.

    query: [Q, H, D].
    key, value: [S, KV, D].
    spans: [Q, 4] as of `key_spans`.
    scale: of the scores.
    """
    query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
    if kind == "dense":
        output = F.scaled_dot_product_attention(query, key, value, spans_mask(spans, key.shape[2]), scale=scale, enable_gqa=True)
    elif kind == "blocks":
        output = slot_attention(query[0], key[0], value[0], spans, scale)[None]
    else:
        mask = block_mask(spans, keys=key.shape[2])
        output = _flex_attention(query)(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    return output[0].transpose(0, 1)


def _attention(
    attend: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_ids: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface.

    query: [1, H, S, D].
    key, value: [1, KV, S, D].
    attention_mask: the spans as [1, 1, S, 4], or what transformers makes for SDPA.

    Returns [1, S, H, D] and None.

    Raises `Pard2Error` for anything else that a model asks of its attention. Windows are ignored:
    `check_compatibility` makes sure that none is shorter than a conversation.
    """
    if attention_mask is None or attention_mask.dtype != torch.long:  # a pass over tokens
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, softcap=softcap, position_ids=position_ids, **others
        )
    kind = type(module).__name__
    if dropout:
        raise Pard2Error(f"{kind} drops attention weights with probability {dropout} in training; set loop.attention=dense, which can")
    if softcap is not None:
        raise Pard2Error(f"{kind} caps its scores, which training cannot; name another draft.path")
    for name, other in others.items():  # an argument that changes no score, such as a flag, is no tensor
        if isinstance(other, Tensor):
            what = "has attention sinks" if name == "s_aux" else f"attends by {name!r}"
            raise Pard2Error(f"{kind} {what}, which training cannot; name another draft.path")
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, scale).transpose(1, 2), None


def _blocks(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> Tensor:
    return slot_attention(query[0], key[0], value[0], spans[0, 0], scale)[None]


def _flex(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> Tensor:
    return _flex_attention(query)(query, key, value, block_mask=_block_mask(spans), scale=scale, enable_gqa=True)


def _flex_attention(query: Tensor) -> Any:
    return _compiled_flex_attention() if query.is_cuda else flex_attention


@cache
def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention)


@lru_cache(maxsize=1)  # all layers of a pass get the same tensor, and tensors are compared by identity
def _block_mask(spans: Tensor) -> BlockMask:
    return block_mask(spans[0, 0])


for _kind, _attend in (("blocks", _blocks), ("flex", _flex)):
    transformers.AttentionInterface.register(_NAMES[_kind], partial(_attention, _attend))
    transformers.AttentionMaskInterface.register(_NAMES[_kind], sdpa_mask)
