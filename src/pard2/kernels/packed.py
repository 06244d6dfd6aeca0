"""Linear layers of half-precision weights in the layout that this CPU multiplies
with; activations are float32.

PyTorch's own bfloat16 layers read their matrix as it lies in memory, and a CPU without bfloat16
arithmetic multiplies it by K rows as K separate vector products, so that verifying 5 tokens costs five
plain steps. Laid out beforehand, the same bytes are read once at the speed of memory, and 1 row and 8
rows take nearly the same time.

With bfloat16 arithmetic (AMX, AVX-512 BF16) it is oneDNN's layout: inputs and outputs of each product are
rounded to bfloat16, as the model's own layers do, and a row comes out the same whatever rows share its pass.
Without it, FBGEMM's: weights stay bfloat16 values, all else is float32, so it is never less exact than the
arithmetic that it replaces.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# A bfloat16 weight below 2**-14 becomes a float16 subnormal with an error of at most 2**-25:
# less than the rounding of the float32 sum it enters.
_LARGEST = 65504.0

_ROWS = 16  # that oneDNN's layout is made for: one sequence has at most these in a pass, and larger batches lose little


def has_bfloat16_products() -> bool:
    """True on a CPU that multiplies bfloat16 numbers in hardware, with a oneDNN that knows how."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16")) and torch.backends.mkldnn.is_available()


def should_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """True on a CPU for half-precision weights that it multiplies faster in packed form."""
    if device.type != "cpu" or dtype == torch.float32:
        return False
    if has_bfloat16_products():
        return dtype == torch.bfloat16
    has = torch.cpu.get_capabilities()
    return "fbgemm" in torch.backends.quantized.supported_engines and bool(has.get("avx2") and has.get("f16c"))


class PackedLinear(nn.Module):
    """`y = x W^T + b` with W kept in packed form; x and y [..., in], [..., out] are float32.

    A bfloat16 weight on a CPU that `has_bfloat16_products` is packed for oneDNN, any
    other in float16 for FBGEMM.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        self._unpack: Callable[[], Tensor]
        if weight.dtype == torch.bfloat16 and has_bfloat16_products():
            self._forward, self._unpack = _for_onednn(weight, bias)
        else:
            self._forward, self._unpack = _for_fbgemm(weight, bias)

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
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    product = torch.ops.mkldnn._linear_pointwise.default._op
    return lambda x: product(x.bfloat16(), packed, bias, "none", [], "").float(), lambda: packed.to_dense().float()


def can_pack(weight: Tensor) -> bool:
    """False for a matrix with values outside float16's range: its layer keeps its plain form."""
    return bool(weight.abs().max() <= _LARGEST)
