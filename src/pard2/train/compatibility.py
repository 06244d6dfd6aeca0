"""Refuses a pair whose training pass would not be its decoding pass.

Training hands the draft a mask of its own and multiplies final states by the head's weight. An architecture with
a logit cap or scale, a sliding window, or attention that ignores such a mask computes something else when it
decodes. Rather than know them all, one conversation is run both ways.
"""

import torch
from torch import Tensor

from pard2.data.chat import Example
from pard2.errors import Pard2Error
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.objective.layout import attention_mask, build_layout

_POSITIONS = 32  # compared at the end of the conversation, where a window has slid furthest
_TOLERANCE = 1e-2  # of the largest logit; a bfloat16 target rounds by less


@torch.no_grad()
def check_compatibility(target: Target, draft: Draft, examples: list[Example]) -> None:
    """Raises `Pard2Error` unless both models can be trained with on the longest of these conversations."""
    draft.eval()  # dropout would differ between the two ways
    longest = max(examples, key=lambda e: len(e.token_ids))
    length = len(longest.token_ids)
    context = min(target.context_length, draft.config.max_position_embeddings)
    if length > context:
        raise Pard2Error(f"record {longest.id} has {length} tokens, the models read {context}; set data.max_length={context} or lower")
    tokens = torch.tensor([longest.token_ids], device=target.device)
    said = target.forward(tokens, num_logits=_POSITIONS)
    assert said.logits is not None
    if not _close(target.head(said.last_state[:, -_POSITIONS:]), said.logits):
        raise Pard2Error(f"{target.name!r} turns its final states into logits in a way that training does not know; it cannot teach a draft")
    layout = build_layout([length], [[]])
    positions = layout.position[None].to(target.device)
    states = draft.states(tokens, None, attention_mask(layout)[None, None].to(target.device), positions)
    trained = states[:, -_POSITIONS:] @ draft.lm.get_output_embeddings().weight.T
    if not _close(trained, draft.forward(tokens, None, num_logits=_POSITIONS)):
        raise Pard2Error(
            f"{draft.name!r} would compute other logits in training than in decoding: its architecture caps or scales logits, lacks SDPA attention, "
            f"or slides a window over the longest conversation ({length} tokens); lower data.max_length, or name another draft.path"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())
