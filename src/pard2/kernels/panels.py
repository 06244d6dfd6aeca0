"""A matrix laid out for `products.multiply`, in bfloat16 or int8."""

import numpy as np
import torch
from torch import Tensor

from pard2.errors import Pard2Error
from pard2.kernels.products import PANEL, multiply_part
from pard2.kernels.team import run_together, team_size
from pard2.kernels.vectors import LANES

Array = np.ndarray

_PIECE = 2**18  # numbers


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, in] as int8 [out, in] and a scale [out] for each output: weight = int8 * scale, as
    nearly as it goes.

    The largest of an output's weights becomes 127. An output of zeros stays one. Raises `Pard2Error` for
    NaN and infinity.
    """
    scale = weight.abs().amax(1).float() / 127
    if not bool(scale.isfinite().all()):
        raise Pard2Error(f"a matrix {list(weight.shape)} holds NaN or infinity, which int8 cannot")
    inverse, values = torch.where(scale > 0, 1 / scale, 0), torch.empty(weight.shape, dtype=torch.int8)
    step = max(1, _PIECE // weight.shape[1])
    for start in range(0, len(weight), step):  # not all of it in float32 at once
        rows = slice(start, start + step)
        values[rows] = (weight[rows].float() * inverse[rows, None]).round_().clamp_(-127, 127)
    return values, scale


class Panels:
    """`y = x W^T + b`. x and y are float32; a float32 row comes out the same in any company.

    like: an array of the weights' type in memory, as kernels are told it.
    numbers: [4] int64, as kernels are told the matrix: addresses of its panels, scales and biases, and
        inputs.
    count: panels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, int8: bool = False) -> None:
        """weight: [out, in]. bias: [out]. What bfloat16 cannot hold of them is rounded, unless they
        become int8.
        """
        self.out_features, self.in_features = weight.shape
        self.count = -(-self.out_features // PANEL)
        values, scale = quantised(weight) if int8 else (weight.bfloat16().view(torch.int16), torch.ones(self.out_features))
        self._panels: Array = _laid_out(values).numpy().view(np.int8 if int8 else np.uint16)
        self._scale, self._bias = (self._padded(part) for part in (scale, torch.zeros(self.out_features) if bias is None else bias.float()))
        self.like = np.zeros(0, self._panels.dtype)
        self.numbers = np.array([self._panels.ctypes.data, self._scale.ctypes.data, self._bias.ctypes.data, self.in_features], np.int64)

    @property
    def padded_features(self) -> int:
        """Outputs with those that fill the last panel."""
        return self.count * PANEL

    def _padded(self, part: Tensor) -> Array:
        whole = np.zeros(self.padded_features, np.float32)
        whole[: self.out_features] = part.detach().numpy()
        return whole

    @property
    def weight(self) -> Tensor:
        """[out, in], in float32."""
        panels = torch.from_numpy(self._panels.view(np.int8 if self._panels.dtype == np.int8 else np.int16))
        if panels.dtype == torch.int16:
            panels = panels.view(torch.bfloat16).unflatten(2, (LANES, 2)).transpose(2, 3).flatten(2)
        rows = panels.transpose(1, 2).reshape(-1, self.in_features)[: self.out_features]
        return rows.float() * torch.from_numpy(self._scale)[: self.out_features, None]

    def product(self, x: Tensor) -> Tensor:
        """[..., out] of float32 x [..., in]."""
        rows = np.ascontiguousarray(x.detach().reshape(-1, self.in_features).float().numpy())
        out = np.empty((len(rows), self.padded_features), np.float32)
        if len(rows):
            run_together(team_size(), multiply_part, self.like, self.numbers, rows, out)
        return torch.from_numpy(out)[:, : self.out_features].reshape(*x.shape[:-1], self.out_features)


def _laid_out(values: Tensor) -> Tensor:
    """[panels, in, PANEL] of [out, in], zeros beyond the last output; 16-bit values in the order that
    `products` reads.
    """
    outputs, inputs = values.shape
    panels = torch.zeros(-(-outputs // PANEL), inputs, PANEL, dtype=values.dtype)
    whole = outputs // PANEL
    panels[:whole] = values[: whole * PANEL].view(whole, PANEL, inputs).transpose(1, 2)
    if rest := outputs - whole * PANEL:
        panels[whole, :, :rest] = values[whole * PANEL :].T
    if values.dtype == torch.int16:
        panels = panels.unflatten(2, (2, LANES)).transpose(2, 3).flatten(2)
    return panels.contiguous()
