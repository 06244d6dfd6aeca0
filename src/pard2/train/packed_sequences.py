"""Packed sequences: several conversations one after the other, laid out as the slots that a step trains.

Which documents share a sequence, the order of the sequences, and what is drawn for each are functions of the
seed alone, so that a run needs no state of its own for them. No model takes part: a sequence can be made
ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pard2.config import ObjectiveConfig
from pard2.data.corpus import Example
from pard2.data.packing import pack
from pard2.objective.cod import cod_correction, keep_masks
from pard2.objective.layout import SlotLayout, build_layout

# Kinds of random draws.
_ORDER, _LAYOUT, DROPOUT = range(3)


def generator(seed: int, *draw: int) -> torch.Generator:
    """A generator for one draw of the run.

    draw: what tells it from all others, such as its kind and the number of its packed sequence.
    """
    value = seed
    for number in draw:
        value = (value * 1_000_003 + number + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(value)


@dataclass(frozen=True, kw_only=True)
class PackedSequence:
    """N tokens of whole documents, and their S slots.

    examples: the documents.
    token_ids: [N].
    layout: the S slots.
    with_features: [S] bool, False for the slots of documents trained target-independent.
    trained: [P] indices of the slots that predict a token.
    correction: [P] float32, how many slots each stands for (1 without the COD correction).
    answered: [K] slots at each depth that predict a token of an answer, those included that are not trained
        because the draft cannot propose it.
    labels: [P] columns of the teacher's logits that the trained slots are to say; None for those of the
        conversation's tokens.
    """

    examples: Sequence[Example]
    token_ids: Tensor
    layout: SlotLayout
    with_features: Tensor
    trained: Tensor
    correction: Tensor
    answered: Tensor
    labels: Tensor | None = None

    def to(self, device: torch.device) -> "PackedSequence":
        return PackedSequence(
            examples=self.examples,
            token_ids=self.token_ids.to(device),
            layout=self.layout.to(device),
            with_features=self.with_features.to(device),
            trained=self.trained.to(device),
            correction=self.correction.to(device),
            answered=self.answered.to(device),
            labels=None if self.labels is None else self.labels.to(device),
        )


def lay_out(
    examples: Sequence[Example], objective: ObjectiveConfig, generator: torch.Generator, columns: Tensor | None = None, first_anchor: int = 0
) -> PackedSequence:
    """Draw which masks the documents keep, and which documents lose their features.

    A slot is trained if the token that it predicts belongs to an answer and, with `anchors: response`, the
    token after its anchor does.

    columns: [V], as in `Teacher`; a slot whose token the draft cannot propose is not trained. None: it can
        propose all.
    """
    lengths = [len(e.token_ids) for e in examples]
    flags = [torch.from_numpy(e.predicted) for e in examples]
    arguments = (objective.draft_tokens, objective.retention, objective.min_retention, generator)
    kept = [keep_masks(predicted, *arguments, anchors=objective.anchors) for predicted in flags]
    kept = [[anchors[anchors >= first_anchor] for anchors in depths] for depths in kept]
    layout = build_layout(lengths, kept)
    drawn = torch.rand(len(examples), generator=generator) >= objective.feature_drop
    token_ids = torch.from_numpy(np.concatenate([e.token_ids for e in examples], dtype=np.int64))
    predicted = torch.cat(flags)

    inside = layout.position + 1 < torch.tensor(lengths)[layout.document]
    index = layout.predicted_index.clamp(max=len(token_ids) - 1)
    answered = inside & predicted[index] & (layout.anchor >= first_anchor)
    trained = torch.nonzero(answered if columns is None else answered & (columns[token_ids[index]] >= 0))[:, 0]
    correction = torch.ones(len(trained))
    if objective.cod_correction:
        factors = torch.stack([cod_correction(p, k, objective.anchors) for p, k in zip(flags, kept, strict=True)])
        correction = factors[layout.document[trained], layout.depth[trained]]
    return PackedSequence(
        examples=examples,
        token_ids=token_ids,
        layout=layout,
        with_features=drawn[layout.document],
        trained=trained,
        correction=correction,
        answered=layout.depth[answered].bincount(minlength=objective.draft_tokens),
    )


class PackedCorpus:
    """Documents packed once; their sequences come in a new order in every epoch."""

    def __init__(
        self,
        examples: Sequence[Example],
        lengths: Sequence[int] | np.ndarray,
        max_length: int,
        objective: ObjectiveConfig,
        seed: int,
        columns: Tensor | None = None,
        first_anchor: int = 0,
    ) -> None:
        """Documents and the length of the sequences that they are packed into.

        lengths: tokens of each document.
        max_length: tokens of a packed sequence. Raises `Pard2Error` for a document that is longer.
        columns, first_anchor: as for `lay_out`.
        """
        self.packed = pack(lengths, max_length, seed)
        self._examples, self._objective, self._seed = examples, objective, seed
        self._first_anchor = first_anchor
        self._columns = None if columns is None else columns.cpu()
        self._order = lru_cache(maxsize=2)(self._permutation)  # a step may span two epochs

    def __len__(self) -> int:
        """Packed sequences of an epoch."""
        return len(self.packed)

    def _permutation(self, epoch: int) -> list[int]:
        return torch.randperm(len(self), generator=generator(self._seed, _ORDER, epoch)).tolist()

    def sequence(self, number: int) -> PackedSequence:
        """Packed sequence `number`, counted from 0 over all epochs, laid out on the CPU."""
        epoch, index = divmod(number, len(self))
        documents = [self._examples[i] for i in self.packed[self._order(epoch)[index]]]
        return lay_out(documents, self._objective, generator(self._seed, _LAYOUT, number), self._columns, self._first_anchor)
