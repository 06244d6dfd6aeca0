"""One packed sequence in a training step: what the target says about its slots, and the draft's loss on them.

The loss is a sum over the sequence's slots; the division by the global batch's sum of weights comes last,
when all sequences of all processes are through.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pard2.config import ObjectiveConfig
from pard2.data.features import DocumentStates
from pard2.models.draft import ONE_A_PASS, Draft
from pard2.models.target import Target
from pard2.objective.chunked_loss import chunked_loss
from pard2.objective.layout import slot_features, slot_tokens
from pard2.objective.loss import LossOutput, Objective, TrainedSlots
from pard2.objective.weights import cat_weights
from pard2.train.attention import AttentionKind, draft_states
from pard2.train.packed_sequences import PackedSequence

_LOGIT_ROWS = 256  # positions whose teacher logits are held at once


@dataclass(frozen=True)
class Teacher:
    """The target's logits of what the draft can propose.

    That is the tokens that both have or, for a draft with a `ShortHead`, the D tokens of that head.

    head: makes logits of the target's last states.
    columns: [V] which of these logits is each of the target's tokens, -1 for a token without one; None where
        logits and tokens are the same.
    whole: makes the logits that CAT's probabilities are of, the same columns first; None: `head` does.
    size: how many rows of the draft's head have a column of `head`; None for all.
    """

    head: Callable[[Tensor], Tensor]
    columns: Tensor | None
    whole: Callable[[Tensor], Tensor] | None = None
    size: int | None = None

    @classmethod
    def of(cls, target: Target, draft: Draft) -> "Teacher":
        """Siblings of one tokenizer may be padded to different sizes (METHOD: section 4)."""
        short = draft.short_head
        if short is not None:
            # Its rows are the target's own; the other tokens count as if they did not exist.
            return cls(lambda states: short.chosen_logits(states.to(short.weight.dtype)), short.places())
        common = min(target.vocab_size, draft.vocab_size)
        if common == target.vocab_size:
            return cls(target.head, None, size=common)
        columns = torch.arange(target.vocab_size, device=target.device)
        return cls(lambda states: target.head(states)[..., :common], columns.masked_fill(columns >= common, -1), target.head, common)

    def labels(self, token_ids: Tensor) -> Tensor:
        """Columns of the logits that stand for these tokens, -1 where none does."""
        return token_ids if self.columns is None else self.columns[token_ids]


@torch.no_grad()
def trained_slots(packed: PackedSequence, states: DocumentStates | None, teacher: Teacher, objective: ObjectiveConfig) -> TrainedSlots:
    """The slots that predict a token, with the weights that are known before the draft's pass.

    packed, states: on the target's device; no states where the objective does not ask the target.
    """
    layout, trained = packed.layout, packed.trained
    weight = packed.correction
    if objective.weighting == "cat":
        assert states is not None, "CAT weighs by the target's probabilities"
        weight = weight * cat_weights(layout, _token_logprobs(teacher, states.last_state, packed))[trained]
    predicted = layout.predicted_index[trained]
    labels = teacher.labels(packed.token_ids[predicted])
    return TrainedSlots(layout.anchor_index[trained], layout.depth[trained], predicted - 1, labels, weight)


def _token_logprobs(teacher: Teacher, last_state: Tensor, packed: PackedSequence) -> Tensor:
    """[N] log-probability that the target gives each token that a mask stands for.

    It is -inf for a token that the draft cannot propose; no weight looks at tokens that no mask stands for.
    """
    head = teacher.whole or teacher.head
    logprobs = torch.zeros(len(packed.token_ids), device=last_state.device)
    masks = packed.layout.depth > 0
    inside = torch.unique((packed.layout.anchor_index + packed.layout.depth)[masks])
    for index in inside.split(_LOGIT_ROWS):
        logits = head(last_state[index - 1]).float()
        label = teacher.labels(packed.token_ids[index])
        said = logits.gather(-1, label[:, None].clamp(min=0))[:, 0] - logits.logsumexp(-1)
        logprobs[index] = said.masked_fill(label < 0, -torch.inf)
    return logprobs


class PackedLoss(nn.Module):
    """The draft's loss on a packed sequence.

    It is the forward pass of a module since that is where several processes hook in to gather gradients.
    """

    def __init__(self, draft: Draft, objective: ObjectiveConfig, attention: AttentionKind, precision: torch.dtype, size: int | None = None) -> None:
        """A draft with its loss.

        attention: how slots attend.
        precision: of the draft's arithmetic; its weights stay as they are.
        size: of its `Teacher`.
        """
        super().__init__()
        self.draft = draft
        self.objective = objective
        self.attention: AttentionKind = attention
        self.precision = precision
        self.size = size

    def states(self, packed: PackedSequence, features: Tensor | None) -> Tensor:
        """[S, hidden] final states of the draft's training pass at every slot.

        features: [N, F], None for a draft that takes in none.
        """
        layout = packed.layout
        of_slots = None if features is None else slot_features(layout, features)
        spec = self.draft.spec or ONE_A_PASS
        # A token that the target alone has is read as the draft's last one; decoding does the same.
        token_ids = slot_tokens(layout, packed.token_ids.clamp(max=self.draft.vocab_size - 1), spec.mask_token)
        mixed = torch.autocast(token_ids.device.type, self.precision, enabled=self.precision != torch.float32)
        with mixed:
            states = draft_states(self.draft, token_ids, of_slots, layout, self.attention, packed.with_features)
        return states.to(self.precision)

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
        head = self.draft.lm.get_output_embeddings().weight
        if self.size is not None and self.size < len(head):
            head = head[: self.size]  # the others are never proposed
        return chunked_loss(self.states(packed, features)[packed.trained], head, teacher_states, teacher_head, slots, objective)
