"""An embedding table that keeps its half precision where all else computes in float32."""

import torch.nn.functional as F
from torch import Tensor, nn


class HalfEmbedding(nn.Module):
    """Rows of `weight` [vocabulary, hidden] in float32. It is a table to read, and no parameter."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.__dict__["weight"] = weight.detach()

    def forward(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.weight).float()
