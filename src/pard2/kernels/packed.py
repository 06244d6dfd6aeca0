"""Linear layers of half-precision weights in a layout that this CPU multiplies with; activations are float32.

PyTorch's own bfloat16 layers read their matrix as it lies in memory, and a CPU without bfloat16
arithmetic multiplies it by K rows as K separate vector products, so that verifying 5 tokens costs five
plain steps. Laid out beforehand, the same bytes are read once at the speed of memory, and 1 row and 8
rows take nearly the same time. There are four such layouts:

onednn: for bfloat16 arithmetic (AMX, AVX-512 BF16). Inputs and outputs of each product are rounded to
    bfloat16, as the model's own layers do, and a row comes out the same whatever rows share its pass.
fbgemm: weights become float16, which holds a bfloat16 weight's digits; all else is float32, so it is never
    less exact than bfloat16 arithmetic.
panels: our own kernels (`products`) with bfloat16 weights; all else is float32.
int8: the same with int8 weights, one scale an output: half of the bytes, and another model by a hair.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pard2.kernels.panels import Panels

PackedFormat = Literal["onednn", "fbgemm", "panels", "int8"]

# A bfloat16 weight below 2**-14 becomes a float16 subnormal with an error of at most 2**-25:
# less than the rounding of the float32 sum it enters.
_LARGEST = 65504.0

_ROWS = 16  # that oneDNN's layout is made for: one sequence has at most these in a pass, and larger batches lose little


def has_bfloat16_products() -> bool:
    """True on a CPU that multiplies bfloat16 numbers in hardware, with a oneDNN that knows how."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16")) and torch.backends.mkldnn.is_available()


def has_float16_products() -> bool:
    """True on a CPU for which FBGEMM has products with float16 weights."""
    has = torch.cpu.get_capabilities()
    return "fbgemm" in torch.backends.quantized.supported_engines and bool(has.get("avx2") and has.get("f16c"))


class PackedLinear(nn.Module):
    """`y = x W^T + b` with W kept in packed form; x and y [..., in], [..., out] are float32.

    panels: W as our own kernels read it, None for another library's form.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, weight_format: PackedFormat) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        self._unpack: Callable[[], Tensor]
        self.panels: Panels | None = None
        if weight_format == "onednn":
            self._forward, self._unpack = _for_onednn(weight, bias)
        elif weight_format == "fbgemm":
            self._forward, self._unpack = _for_fbgemm(weight, bias)
        else:
            from pard2.kernels import panels  # numba is an extra

            self.panels = own = panels.Panels(weight, bias, int8=weight_format == "int8")
            self._forward, self._unpack = own.product, lambda: own.weight

    @property
    def weight(self) -> Tensor:
        """[out, in], unpacked into float32."""
        return self._unpack()

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)


# `_op`: past a look for Python implementations of the operator, which costs more than a small product.


def _for_fbgemm(weight: Tensor, bias: Tensor | None) -> tuple[Callable[[Tensor], Tensor], Callable[[], Tensor]]:
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())
    product = torch.ops.quantized.linear_dynamic_fp16.default._op
    return lambda x: product(x, packed), lambda: torch.ops.quantized.linear_unpack_fp16(packed)[0]


def _for_onednn(weight: Tensor, bias: Tensor | None) -> tuple[Callable[[Tensor], Tensor], Callable[[], Tensor]]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16().contiguous(), _ROWS)
    bias = None if bias is None else bias.bfloat16()
    product = torch.ops.mkldnn._linear_pointwise.default._op
    return lambda x: product(x.bfloat16(), packed, bias, "none", [], "").float(), lambda: packed.to_dense().float()


def can_pack(weight: Tensor) -> bool:
    """False for a matrix with values outside float16's range: its layer keeps its plain form."""
    return bool(weight.abs().max() <= _LARGEST)
