"""Refuses a pair whose training pass would not be its decoding pass.

Training hands the draft a mask of its own and multiplies final states by the head's weight. An architecture with
a logit cap or scale, a sliding window, or attention that ignores such a mask computes something else when it
decodes. Rather than know them all, one conversation is run both ways.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.data.chat import Example
from pard2.errors import Pard2Error, first_line
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.objective.layout import build_layout, slot_tokens
from pard2.train.attention import AttentionKind, draft_states

_POSITIONS = 32  # compared at the end of the conversation, where a window has slid furthest
_TOLERANCE = 1e-2  # of the largest logit; a bfloat16 target rounds by less


@torch.no_grad()
def check_compatibility(target: Target, draft: Draft, examples: Sequence[Example], kind: AttentionKind) -> None:
    """Raises `Pard2Error` unless both models can be trained with, by this kind of attention, on the longest of these conversations."""
    draft.eval()  # dropout would differ between the two ways
    longest = max(examples, key=lambda e: len(e.token_ids))
    length = len(longest.token_ids)
    context = min(target.context_length, draft.config.max_position_embeddings)
    if length > context:
        raise Pard2Error(f"record {longest.id} has {length} tokens, the models read {context}; set data.max_length={context} or lower")
    tokens = torch.tensor(longest.token_ids, device=target.device)
    said = target.forward(tokens[None], num_logits=_POSITIONS)
    assert said.logits is not None
    if not _close(target.head(said.last_state[:, -_POSITIONS:]), said.logits):
        raise Pard2Error(f"{target.name!r} turns its final states into logits in a way that training does not know; it cannot teach a draft")
    try:
        trained, decoded = _both_ways(draft, tokens, kind)
    except (Pard2Error, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a modeling file makes of a mask that it did not expect
        way_out = "name another draft.path" if kind == "dense" else "loop.attention=dense may do"
        raise Pard2Error(
            f"{draft.name!r} ({type(draft.lm).__name__}) cannot be trained with loop.attention={kind} ({first_line(error)}); {way_out}"
        ) from error
    if not _close(trained, decoded):
        raise Pard2Error(
            f"{draft.name!r} would compute other logits in training than in decoding: its architecture caps or scales logits, lacks SDPA attention, "
            f"or slides a window over the longest conversation ({length} tokens); lower data.max_length, or name another draft.path"
        )


def _both_ways(draft: Draft, tokens: Tensor, kind: AttentionKind) -> tuple[Tensor, Tensor]:
    """Logits of the conversation's last positions, its end masked, by a training pass and by a decoding pass.

    The row of the training pass also holds what they must not see: the conversation's beginning, as a document of its own, and another chain.
    """
    anchor = max(0, len(tokens) - draft.spec.draft_tokens)
    masks = len(tokens) - 1 - anchor
    before, read = tokens[:_POSITIONS], tokens[: anchor + 1]
    chains = [torch.tensor([anchor - 1, anchor][-len(read) :])] * masks
    layout = build_layout([len(before), len(read)], [[], chains]).to(tokens.device)
    row = slot_tokens(layout, torch.cat([before, read]), draft.spec.mask_token)
    draft.train()
    draft_states(draft, row, None, layout, kind)  # raises for what happens in training alone
    draft.eval()
    states = draft_states(draft, row, None, layout, kind)
    compared = (layout.document == 1) & ((layout.depth == 0) | (layout.anchor == anchor))
    trained = states[compared][-_POSITIONS:] @ draft.lm.get_output_embeddings().weight.T
    masked = torch.cat([read, read.new_full((masks,), draft.spec.mask_token)])
    decoded = draft.forward(masked[None], None, num_logits=len(trained))[0]
    return trained, decoded if draft.short_head is None else decoded[:, draft.short_head.token_ids]


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())
