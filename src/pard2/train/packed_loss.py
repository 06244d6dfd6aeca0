"""The draft's training pass over a packed sequence, and its loss.

The loss is a sum over the sequence's slots; the division by the global batch's sum of weights comes last,
when all sequences of all processes are through.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pard2.config import ObjectiveConfig
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import ONE_A_PASS
from pard2.models.eagle3 import Eagle3Draft
from pard2.objective.chunked_loss import chunked_loss
from pard2.objective.layout import slot_features, slot_tokens
from pard2.objective.loss import LossOutput, Objective, TrainedSlots
from pard2.train.attention import AttentionKind, draft_states
from pard2.train.packed_sequences import PackedSequence
from pard2.train.unrolled import unrolled_states


class PackedLoss(nn.Module):
    """The draft's loss on a packed sequence.

    It is the forward pass of a module since that is where several processes hook in to gather gradients.
    """

    def __init__(
        self,
        draft: AnyDraft,
        objective: ObjectiveConfig,
        attention: AttentionKind,
        precision: torch.dtype,
        size: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        """A draft with its loss.

        attention: how slots attend.
        precision: of the draft's arithmetic; its weights stay as they are.
        size: of its `Teacher`.
        checkpointing: recompute each depth of an EAGLE-3 draft in the backward pass; other drafts are told
            themselves.
        """
        super().__init__()
        self.draft = draft
        self.objective = objective
        self.attention: AttentionKind = attention
        self.precision = precision
        self.size = size
        self.checkpointing = checkpointing

    def states(self, packed: PackedSequence, features: Tensor | None) -> Tensor:
        """[S, hidden] final states of the draft's training pass at every slot.

        features: [N, F], None for a draft that takes in none.
        """
        layout, precision = packed.layout, self.precision
        with torch.autocast(packed.token_ids.device.type, precision, enabled=precision != torch.float32):
            if isinstance(self.draft, Eagle3Draft):
                assert features is not None
                features = features.to(self.draft.decoder_dtype)
                states = unrolled_states(self.draft, packed.token_ids, features, layout, self.attention, self.checkpointing)
            else:
                spec = self.draft.spec or ONE_A_PASS
                # A token that the target alone has is read as the draft's last one; decoding does the same.
                token_ids = slot_tokens(layout, packed.token_ids.clamp(max=self.draft.vocab_size - 1), spec.mask_token)
                of_slots = None if features is None else slot_features(layout, features)
                states = draft_states(self.draft, token_ids, of_slots, layout, self.attention, packed.with_features)
        return states.to(precision)

    def forward(
        self,
        packed: PackedSequence,
        features: Tensor | None,
        slots: TrainedSlots,
        teacher_states: Tensor | None,
        teacher_head: Callable[[Tensor], Tensor],
        tf_eal: bool,
    ) -> LossOutput:
        """The sum of the slots' losses, not yet divided by their weights.

        features: [N, F], None for a draft that takes in none.
        slots: of `trained_slots`.
        teacher_states: [N, H_T], the target's last states; None where the objective does not ask the target.
        teacher_head: makes logits of them.
        tf_eal: whether the added term takes part yet.
        """
        config = self.objective
        weighting = "fixed" if config.weighting == "cat" or config.weighting == "none" else config.weighting
        tf_eal_alpha = config.tf_eal_alpha if tf_eal else 0.0
        objective = Objective(
            weighting=weighting,
            ce_alpha=config.ce_alpha,
            kd_alpha=config.kd_alpha,
            tf_eal_alpha=tf_eal_alpha,
            d_pace_floor=config.d_pace_floor,
            draft_tokens=config.draft_tokens,
        )
        head = self.draft.head_weight
        if self.size is not None and self.size < len(head):
            head = head[: self.size]  # the others are never proposed
        return chunked_loss(self.states(packed, features)[packed.trained], head, teacher_states, teacher_head, slots, objective)
