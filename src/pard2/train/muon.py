"""Muon: momentum whose matrices are made orthogonal before they are applied.

Source: https://kellerjordan.github.io/posts/muon/.

`torch.optim.Muon` computes in bfloat16 whatever the weights are, which is slow on CPUs without bfloat16
arithmetic. This is the same update, in float32 there.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from pard2.kernels.packed import has_bfloat16_products

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic in the post: steep at zero, and within 0.7 .. 1.2 for singular values near 1
_STEPS = 5
_EPSILON = 1e-7
_RMS = 0.2  # of an update's entries per unit of learning rate: about AdamW's, so that both take the same rate (arXiv 2502.16982, section 2.2)


class Muon(torch.optim.Optimizer):
    """For matrices alone: m <- momentum m + g; W <- W - lr (s orthogonal(g + momentum m) + weight_decay W).

    s = 0.2 sqrt(max(rows, columns)). Several processes with the same gradients share out the matrices; each
    gets all updates, the same bit for bit.
    """

    def __init__(self, parameters: list[nn.Parameter] | list[dict[str, Any]], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody re-evaluates a loss
        shared = distributed.is_initialized()
        rank, count = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
        for group in self.param_groups:
            for number, parameter in enumerate(parameter for parameter in group["params"] if parameter.grad is not None):
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(parameter.grad)
                # In the gradient's place, which is not needed any more.
                parameter.grad.add_(buffer, alpha=group["momentum"])
                parameter.grad.copy_(orthogonal(parameter.grad)) if number % count == rank else parameter.grad.zero_()
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                if shared:
                    distributed.all_reduce(parameter.grad)  # one process has it, the others nothing
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(parameter.grad, alpha=-group["lr"] * _RMS * max(parameter.shape) ** 0.5)


def flops(shape: torch.Size) -> float:
    """Floating-point operations of making one matrix orthogonal."""
    short, long = sorted(shape)
    return _STEPS * (4.0 * short**2 * long + 2.0 * short**3)


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of matrix = U S V^T, roughly: singular values end up between 0.7 and 1.2.

    By a Newton-Schulz iteration, which needs products alone.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda or has_bfloat16_products() else matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + _EPSILON)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
