"""No drafter: the target decodes alone, one token a cycle."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.engine.drafters.base import Ask, Choose, Proposals, Reading


class PlainDrafter:
    """Proposes nothing, ever. The yardstick that every other method is measured against."""

    feature_layers: tuple[int, ...] = ()
    sequential = False

    def __init__(self, device: torch.device) -> None:
        self._nothing = Proposals(torch.zeros(0, dtype=torch.long, device=device), ())

    def open(self, positions: int) -> Reading | None:
        return Reading(None)

    def close(self, reading: Reading) -> None:
        pass

    def limit(self, length: int) -> int:
        return 0

    def absorb(self, reading: Reading, token_ids: Sequence[int], features: Tensor | None) -> None:
        pass

    def propose(self, asks: Sequence[Ask], choose: Choose) -> Proposals:
        return self._nothing
