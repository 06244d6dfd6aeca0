"""What the target says about conversations while a draft is trained: hidden states, computed on the spot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pard2.data.corpus import Example
from pard2.models.target import Target

LAST_STATE = (-1,)  # the layers to ask for where no features are wanted
_MOST_PADDING = 0.25  # of a batch's real tokens


@dataclass(frozen=True)
class DocumentStates:
    """Of one conversation of N tokens, on the target's device and in its precision.

    features: [N, F], the chosen hidden states side by side.
    last_state: [N, H], after the final norm: the head makes logits of it.
    """

    features: Tensor
    last_state: Tensor


def joined(documents: Sequence[DocumentStates]) -> DocumentStates:
    """States of a packed sequence that holds these conversations one after the other."""
    if len(documents) == 1:
        return documents[0]
    return DocumentStates(torch.cat([d.features for d in documents]), torch.cat([d.last_state for d in documents]))


def online_states(target: Target, examples: Sequence[Example], layers: Sequence[int]) -> list[DocumentStates]:
    """States of these conversations, in their order.

    layers: one at least, those whose hidden states make a feature.

    Conversations of like length share a pass, padded on the right, where no token before can see it. Their
    states are those that each would have alone but for rounding.
    """
    found: dict[int, DocumentStates] = {}
    for batch in _batches([len(e.token_ids) for e in examples]):
        padded = np.zeros((len(batch), max(len(examples[i].token_ids) for i in batch)), np.int64)
        for row, index in enumerate(batch):
            padded[row, : len(examples[index].token_ids)] = examples[index].token_ids
        output = target.forward(torch.from_numpy(padded).to(target.device), num_logits=0, layers=layers)
        assert output.features is not None, "no hidden states were asked for"
        for row, index in enumerate(batch):
            length = len(examples[index].token_ids)
            found[index] = DocumentStates(output.features[row, :length], output.last_state[row, :length])
    return [found[index] for index in range(len(examples))]


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Which documents share a pass: with a long one, each short one would cost as much as that."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        length = lengths[index]
        if batch and (len(batch) + 1) * length > (1 + _MOST_PADDING) * (tokens + length):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch
