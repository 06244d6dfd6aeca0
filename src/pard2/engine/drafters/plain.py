"""No drafter: the target decodes alone, one token a cycle."""

from torch import Tensor

from pard2.engine.drafters.base import Proposal


class PlainDrafter:
    """Proposes nothing, ever. The yardstick that every other method is measured against."""

    feature_layers: tuple[int, ...] = ()

    def limit(self, length: int) -> int:
        return 0

    def prefill(self, token_ids: Tensor, features: Tensor | None) -> None:
        pass

    def absorb(self, token_ids: Tensor, features: Tensor | None) -> None:
        pass

    def propose(self, k: int) -> Proposal:
        raise ValueError("a plain drafter has nothing to propose")
