"""Which proposed tokens stand: pure rules on tensors, ignorant of models, caches and text."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Verification:
    """The outcome of one verify pass.

    accepted: how many proposed tokens stand. tokens: [1, accepted + 1], those and the target's own
    next one, on the device; token_ids: the same on the host.
    """

    accepted: int
    tokens: Tensor
    token_ids: list[int]


def verify_greedy(logits: Tensor, proposed: Tensor) -> Verification:
    """The longest prefix of the proposal that the target's argmax agrees with, and the argmax after it (METHOD: section 5).

    logits: [1, k + 1, vocabulary], row i the target's after the first i proposed tokens. proposed: [1, k], k >= 0.
    """
    choices = logits.argmax(-1)
    agreed = (choices[:, :-1] == proposed).long().cumprod(1).sum(1, keepdim=True)
    *token_ids, accepted = torch.cat([choices, agreed], dim=1)[0].tolist()  # the only wait for the device in a cycle
    return Verification(accepted, choices[:, : accepted + 1], token_ids[: accepted + 1])
