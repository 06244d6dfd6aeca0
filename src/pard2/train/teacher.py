"""What the target says about the slots of a packed sequence, and how much each of them weighs."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pard2.config import ObjectiveConfig
from pard2.data.features import DocumentStates
from pard2.models.any_draft import AnyDraft
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target
from pard2.objective.loss import TrainedSlots
from pard2.objective.weights import cat_weights
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
    choices: makes the logits of all the target's tokens, whose first choices are what slots are to say
        (EAGLE-3); None where that is the conversation's tokens.
    """

    head: Callable[[Tensor], Tensor]
    columns: Tensor | None
    whole: Callable[[Tensor], Tensor] | None = None
    size: int | None = None
    choices: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(cls, target: Target, draft: AnyDraft) -> "Teacher":
        """Siblings of one tokenizer may be padded to different sizes (METHOD: section 4)."""
        if isinstance(draft, Eagle3Draft):
            columns = torch.full((target.vocab_size,), -1, device=target.device)
            columns[draft.token_ids] = torch.arange(len(draft.token_ids), device=target.device)
            return cls(target.head_of(draft.token_ids), columns, choices=target.head)
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
    if objective.depth_decay != 1:
        weight = weight * objective.depth_decay ** layout.depth[trained]
    predicted = layout.predicted_index[trained]
    labels = teacher.labels(packed.token_ids[predicted]) if packed.labels is None else packed.labels
    return TrainedSlots(layout.anchor_index[trained], layout.depth[trained], predicted - 1, labels, weight)


@torch.no_grad()
def with_choices(packed: PackedSequence, states: DocumentStates, teacher: Teacher) -> PackedSequence:
    """The packed sequence with the target's first choices as labels, without the slots where the draft cannot
    propose it (METHOD: section 9).

    packed, states: on the target's device.
    """
    assert teacher.choices is not None
    predicted, slots = torch.unique(packed.layout.predicted_index[packed.trained], return_inverse=True)
    chosen = [teacher.labels(teacher.choices(states.last_state[index - 1]).argmax(-1)) for index in predicted.split(_LOGIT_ROWS)]
    labels = torch.cat(chosen)[slots]
    kept = labels >= 0
    return replace(packed, trained=packed.trained[kept], correction=packed.correction[kept], labels=labels[kept])


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
