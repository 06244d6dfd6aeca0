"""Several linear layers of one input as one, by one operation over one matrix."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pard2.kernels.packed import PackedLinear
from pard2.kernels.weight_format import WeightFormat, formatted


class FusedLinear:
    """The outputs of `parts` side by side.

    The parts stay layers of their model. Their weights become views of the joint matrix, so that
    training them or loading others changes both. Moving them to another device or dtype separates
    them from it; fuse afterwards.
    """

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        # Under inference mode the views could never be trained again.
        with torch.inference_mode(False), torch.no_grad():
            self.weight = torch.cat([part.weight.detach() for part in parts])
            biases = [part.bias.detach() for part in parts if part.bias is not None]
            assert len(biases) in (0, len(parts)), "all parts have a bias, or none"
            self.bias = torch.cat(biases) if biases else None
            row = 0
            for part in parts:
                part.weight.data = self.weight[row : row + part.out_features]
                if self.bias is not None:
                    part.bias.data = self.bias[row : row + part.out_features]
                row += part.out_features

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedPart(nn.Module):
    """Some of the outputs of a packed matrix: the model's own code calls each layer by itself."""

    def __init__(self, whole: PackedLinear, start: int, end: int) -> None:
        super().__init__()
        self.whole = whole
        self._rows = slice(start, end)

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x)[..., self._rows]


def fuse(module: nn.Module, names: Sequence[str], weight_format: WeightFormat) -> FusedLinear | PackedLinear:
    """Fuse the linear layers of these names, in this format, if their weights allow it."""
    parts = [part for name in names if isinstance(part := module.get_submodule(name), nn.Linear)]
    fused = FusedLinear(parts)
    whole = formatted(fused.weight, fused.bias, weight_format)
    if whole is None:
        return fused
    row = 0
    for name, part in zip(names, parts, strict=True):
        setattr(module, name, PackedPart(whole, row, row := row + part.out_features))
    return whole
