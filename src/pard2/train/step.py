"""One row of packed documents: its slots, what the target says about them, and the draft's loss on them.

A row is laid out without a model, so that it can be made ahead. The loss is a sum over the row's slots; the
division by the global batch's sum of weights comes last, when all rows of all processes are through.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pard2.config import ObjectiveConfig
from pard2.data.chat import Example
from pard2.data.features import DocumentStates
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.objective.chunked_loss import chunked_loss
from pard2.objective.cod import cod_correction, keep_masks
from pard2.objective.layout import SlotLayout, build_layout, slot_features, slot_tokens
from pard2.objective.loss import LossOutput, Objective, TrainedSlots
from pard2.objective.weights import cat_weights
from pard2.train.attention import AttentionKind, draft_states

_LOGIT_ROWS = 256  # positions whose teacher logits are held at once


@dataclass(frozen=True)
class PackedSequence:
    """N tokens of whole documents and their S slots.

    token_ids: [N]. with_features: [S] bool, False for the slots of documents trained target-independent. trained: [P] indices of the slots
    that predict a token. correction: [P] float32, how many slots each stands for (1 without the COD correction). answered: [K] slots at each
    depth that predict a token of an answer, those included that are not trained because the draft cannot propose it.
    """

    examples: Sequence[Example]
    token_ids: Tensor
    layout: SlotLayout
    with_features: Tensor
    trained: Tensor
    correction: Tensor
    answered: Tensor

    def to(self, device: torch.device) -> "PackedSequence":
        moved = (t.to(device) for t in (self.with_features, self.trained, self.correction, self.answered))
        return PackedSequence(self.examples, self.token_ids.to(device), self.layout.to(device), *moved)


def lay_out(examples: Sequence[Example], objective: ObjectiveConfig, generator: torch.Generator, places: Tensor | None = None) -> PackedSequence:
    """Draw which masks the documents keep and which documents lose their features.

    A slot is trained if the token that it predicts belongs to an answer and, with `anchors: response`, the token after its anchor does. places: of
    `ShortHead.places`; a slot whose token the draft cannot propose is not trained.
    """
    lengths = [len(e.token_ids) for e in examples]
    flags = [torch.tensor(e.predicted) for e in examples]
    arguments = (objective.draft_tokens, objective.retention, objective.min_retention, generator)
    kept = [keep_masks(predicted, *arguments, anchors=objective.anchors) for predicted in flags]
    layout = build_layout(lengths, kept)
    drawn = torch.rand(len(examples), generator=generator) >= objective.feature_drop
    token_ids = torch.tensor([token for e in examples for token in e.token_ids])
    predicted = torch.cat(flags)

    inside = layout.position + 1 < torch.tensor(lengths)[layout.document]
    index = layout.predicted_index.clamp(max=len(token_ids) - 1)
    answered = inside & predicted[index]
    trained = torch.nonzero(answered if places is None else answered & (places[token_ids[index]] >= 0))[:, 0]
    correction = torch.ones(len(trained))
    if objective.cod_correction:
        factors = torch.stack([cod_correction(p, k, objective.anchors) for p, k in zip(flags, kept, strict=True)])
        correction = factors[layout.document[trained], layout.depth[trained]]
    by_depth = layout.depth[answered].bincount(minlength=objective.draft_tokens)
    return PackedSequence(examples, token_ids, layout, drawn[layout.document], trained, correction, by_depth)


@dataclass(frozen=True)
class Teacher:
    """The target's word on what the draft can propose: on the tokens that both have, or, for a draft with a `ShortHead`, on its D ones.

    head: makes logits of the target's last states. places: [V] where each of the target's tokens stands among them, -1 for the others; None
    for all. whole: makes the logits that CAT's probabilities are of, the same columns first; None: `head` does. size: how many rows of
    the draft's head have a column of `head`.
    """

    head: Callable[[Tensor], Tensor]
    places: Tensor | None
    whole: Callable[[Tensor], Tensor] | None = None
    size: int | None = None

    @classmethod
    def of(cls, target: Target, draft: Draft) -> "Teacher":
        """Siblings of one tokenizer may be padded to different sizes (METHOD: section 4)."""
        short = draft.short_head
        if short is not None:
            # The rows are the target's own, and the others are as if they were not.
            return cls(lambda states: short.chosen_logits(states.to(short.weight.dtype)), short.places())
        common = min(target.vocab_size, draft.vocab_size)
        if common == target.vocab_size:
            return cls(target.head, None, size=common)
        places = torch.arange(target.vocab_size, device=target.device)
        return cls(lambda states: target.head(states)[..., :common], places.masked_fill(places >= common, -1), target.head, common)

    def labels(self, token_ids: Tensor) -> Tensor:
        """Columns of the logits that stand for these tokens, -1 where none does."""
        return token_ids if self.places is None else self.places[token_ids]


@torch.no_grad()
def trained_slots(row: PackedSequence, states: DocumentStates, teacher: Teacher, objective: ObjectiveConfig) -> TrainedSlots:
    """The slots that predict a token, with the weights that are known before the draft's pass. row and states on the target's device."""
    layout, trained = row.layout, row.trained
    weight = row.correction
    if objective.weighting == "cat":
        weight = weight * cat_weights(layout, _token_logprobs(teacher, states.last_state, row))[trained]
    predicted = layout.predicted_index[trained]
    return TrainedSlots(layout.anchor_index[trained], layout.depth[trained], predicted - 1, teacher.labels(row.token_ids[predicted]), weight)


def _token_logprobs(teacher: Teacher, last_state: Tensor, row: PackedSequence) -> Tensor:
    """[N] log-probability that the target gives each token that a mask stands for, -inf for one that the draft cannot propose; no weight
    looks at the others."""
    head = teacher.whole or teacher.head
    logprobs = torch.zeros(len(row.token_ids), device=last_state.device)
    masks = row.layout.depth > 0
    inside = torch.unique((row.layout.anchor_index + row.layout.depth)[masks])
    for index in inside.split(_LOGIT_ROWS):
        logits = head(last_state[index - 1]).float()
        label = teacher.labels(row.token_ids[index])
        said = logits.gather(-1, label[:, None].clamp(min=0))[:, 0] - logits.logsumexp(-1)
        logprobs[index] = said.masked_fill(label < 0, -torch.inf)
    return logprobs


class PackedLoss(nn.Module):
    """The draft's loss on a row, as the forward pass of a module: that is where processes gather gradients.

    attention: how slots attend. precision: of the draft's arithmetic; its weights stay as they are. size: of its `Teacher`.
    """

    def __init__(self, draft: Draft, objective: ObjectiveConfig, attention: AttentionKind, precision: torch.dtype, size: int | None = None) -> None:
        super().__init__()
        self.draft = draft
        self.objective = objective
        self.attention: AttentionKind = attention
        self.precision = precision
        self.size = size

    def states(self, row: PackedSequence, features: Tensor) -> Tensor:
        """[S, hidden] final states of the draft's training pass at every slot. features: [N, F]."""
        layout = row.layout
        # A token that the target alone has stands for nothing that the draft could read; decoding puts the same in its place.
        token_ids = slot_tokens(layout, row.token_ids.clamp(max=self.draft.vocab_size - 1), self.draft.spec.mask_token)
        mixed = torch.autocast(token_ids.device.type, self.precision, enabled=self.precision != torch.float32)
        with mixed:
            states = draft_states(self.draft, token_ids, slot_features(layout, features), layout, self.attention, row.with_features)
        return states.to(self.precision)

    def forward(
        self,
        row: PackedSequence,
        features: Tensor,
        slots: TrainedSlots,
        teacher_states: Tensor,
        teacher_head: Callable[[Tensor], Tensor],
        tf_eal: bool,
    ) -> LossOutput:
        """teacher_states: [N, H_T]; teacher_head makes logits of them. tf_eal: whether the added term takes part yet."""
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
        return chunked_loss(self.states(row, features)[row.trained], head, teacher_states, teacher_head, slots, objective)
