"""A head for a part of the target's vocabulary.

Answers of one kind use a few thousand tokens of fifty or a hundred and fifty thousand, and the head
is the largest matrix that a small draft reads. Leaving out the others costs only the guesses that
would have been one of them. (EAGLE-3, arXiv 2503.01840, has a draft vocabulary for the same reason;
here the rows stay the target's.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pard2.kernels.packed import PackedLinear
from pard2.kernels.weight_format import WeightFormat, formatted


class ShortHead(nn.Module):
    """Logits of all V tokens, of which all but the D chosen ones are -inf.

    token_ids: [D] ids of the chosen ones, rising.
    weight: [D, hidden], their rows of the target's head.
    Both belong to the target or are stored beside the draft, so neither is in its state dict.
    """

    token_ids: Tensor
    weight: Tensor

    whole: nn.Module

    def __init__(self, whole: nn.Module, token_ids: Tensor, dtype: torch.dtype) -> None:
        """whole: the target's head, with a `weight` [V, hidden].

        token_ids: [D], in any order.
        """
        super().__init__()
        self.__dict__["whole"] = whole  # belongs to the target
        weight = whole.weight
        assert isinstance(weight, Tensor)
        self.vocab_size = len(weight)
        self.register_buffer("token_ids", token_ids.sort().values.to(weight.device, torch.long), persistent=False)
        self.register_buffer("weight", weight.detach()[self.token_ids].to(dtype), persistent=False)
        self._product: PackedLinear | None = None

    def convert(self, weight_format: WeightFormat) -> None:
        """Multiply by the matrix in this format from now on."""
        self._product = formatted(self.weight, None, weight_format)

    def chosen_logits(self, states: Tensor) -> Tensor:
        """Logits [.., D] of final states [.., hidden], the draft's or the target's."""
        return F.linear(states, self.weight) if self._product is None else self._product(states)

    def forward(self, states: Tensor) -> Tensor:
        logits = self.chosen_logits(states)
        whole = logits.new_full((*logits.shape[:-1], self.vocab_size), -torch.inf)
        return whole.index_copy_(-1, self.token_ids, logits)

    def places(self) -> Tensor:
        """[V] where each token stands among the chosen ones, -1 for all others."""
        places = torch.full((self.vocab_size,), -1, device=self.token_ids.device)
        places[self.token_ids] = torch.arange(len(self.token_ids), device=self.token_ids.device)
        return places
