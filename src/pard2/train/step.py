"""One row of documents: what the target says about it, and the loss of the draft on it.

The two halves are apart because the loss is normalised over the global batch: the weights of all
rows are known before the first backward pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pard2.config import ObjectiveConfig
from pard2.data.chat import Example
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.objective.cod import keep_masks
from pard2.objective.layout import SlotLayout, attention_mask, build_layout, slot_features, slot_tokens
from pard2.objective.loss import LossOutput, chunked_loss
from pard2.objective.weights import cat_weights

_LOGIT_ROWS = 256  # positions whose teacher logits are held at once


@dataclass(frozen=True)
class Row:
    """A row of N tokens, its S slots, and the target's part of the loss.

    token_ids: [N]. features: [N, F]. teacher_states: [N, H_T]. trained: [P] indices of the slots that predict a
    token. weights: [P]. use_features: False for a row trained target-independent.
    """

    token_ids: Tensor
    layout: SlotLayout
    features: Tensor
    teacher_states: Tensor
    trained: Tensor
    weights: Tensor
    use_features: bool


def prepare_row(target: Target, examples: list[Example], objective: ObjectiveConfig, generator: torch.Generator, use_features: bool) -> Row:
    """Run the target over the documents and lay out their slots.

    A slot is trained if its anchor is followed by an answer token and it predicts one.
    """
    lengths = [len(e.token_ids) for e in examples]
    kept = [keep_masks(torch.tensor(e.predicted), objective.draft_tokens, objective.retention, objective.min_retention, generator) for e in examples]
    layout = build_layout(lengths, kept)
    layout = SlotLayout(*(getattr(layout, name).to(target.device) for name in ("document", "anchor", "depth", "start")))
    token_ids = torch.tensor([token for e in examples for token in e.token_ids], device=target.device)
    predicted = torch.tensor([flag for e in examples for flag in e.predicted], device=target.device)

    # Right padding cannot be seen by what stands before it.
    padded = torch.zeros(len(examples), max(lengths), dtype=torch.long, device=target.device)
    for index, example in enumerate(examples):
        padded[index, : lengths[index]] = torch.tensor(example.token_ids, device=target.device)
    output = target.forward(padded, num_logits=0)
    features = torch.cat([output.features[i, :n] for i, n in enumerate(lengths)])
    states = torch.cat([output.last_state[i, :n] for i, n in enumerate(lengths)])

    weights = cat_weights(layout, _token_logprobs(target, states, token_ids, predicted))
    length = torch.tensor(lengths, device=target.device)[layout.document]
    inside = layout.position + 1 < length
    answered = predicted[layout.predicted_index.clamp(max=len(token_ids) - 1)]
    trained = torch.nonzero(inside & answered)[:, 0]
    return Row(token_ids, layout, features, states, trained, weights[trained], use_features)


def _token_logprobs(target: Target, states: Tensor, token_ids: Tensor, predicted: Tensor) -> Tensor:
    """[N] log-probability that the target gives each answer token; elsewhere, and at a document's first token, no weight looks."""
    logprobs = torch.zeros(len(token_ids), device=states.device)
    for index in torch.nonzero(predicted)[:, 0].split(_LOGIT_ROWS):
        logits = target.head(states[index - 1]).float()
        logprobs[index] = logits.gather(-1, token_ids[index, None])[:, 0] - logits.logsumexp(-1)
    return logprobs


def row_states(draft: Draft, row: Row) -> Tensor:
    """[S, hidden] final states of the draft's training pass at every slot of a row."""
    layout = row.layout
    return draft.states(
        slot_tokens(layout, row.token_ids, draft.spec.mask_token)[None],
        slot_features(layout, row.features)[None] if row.use_features else None,
        attention_mask(layout)[None, None],
        layout.position[None],
    )[0]


def row_loss(draft: Draft, target: Target, row: Row, total: Tensor | float, objective: ObjectiveConfig) -> LossOutput:
    """The draft's loss on a row, as its share of a global batch whose weights sum to `total`."""
    predicted = row.layout.predicted_index[row.trained]
    return chunked_loss(
        row_states(draft, row)[row.trained],
        draft.lm.get_output_embeddings().weight,
        row.teacher_states,
        target.head,
        predicted - 1,
        row.token_ids[predicted],
        row.weights,
        total,
        objective.ce_alpha,
        objective.kd_alpha,
    )
