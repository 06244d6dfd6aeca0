"""Half-precision linear layers for CPUs without native bfloat16 arithmetic.

There, PyTorch multiplies a bfloat16 matrix by K rows as K separate vector products, so that verifying 5
tokens costs five plain steps. FBGEMM's packed half-precision kernel reads the same bytes once and multiplies
in float32: 1 row and 5 rows then take nearly the same time. Weights stay bfloat16 values; activations are
float32, hence never less exact than the bfloat16 arithmetic they replace.
"""

import torch
from torch import Tensor, nn

# A bfloat16 weight below 2**-14 becomes a float16 subnormal with an error of at most 2**-25:
# less than the rounding of the float32 sum it enters.
_LARGEST = 65504.0


def should_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """True on a CPU that has AVX2 and float16 conversion but no native bfloat16 products."""
    if device.type != "cpu" or dtype == torch.float32 or "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx2") and has.get("f16c") and not (has.get("avx512_bf16") or has.get("amx_bf16")))


# Past a look for Python implementations of the operator, which costs more than a small product.
_linear = torch.ops.quantized.linear_dynamic_fp16.default._op


class PackedLinear(nn.Module):
    """`y = x W^T + b` with W kept in FBGEMM's packed float16 form; x and y [..., in], [..., out] are float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().float(), None if bias is None else bias.detach().float())

    @property
    def weight(self) -> Tensor:
        """[out, in], unpacked into float32."""
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self._packed)[0]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self._packed)


def can_pack(weight: Tensor) -> bool:
    """False for a matrix with values outside float16's range."""
    return bool(weight.abs().max() <= _LARGEST)


def pack_linears(model: nn.Module) -> None:
    """Replace, in place, every linear layer of a frozen model by its packed form; the rest will run in float32.

    A layer whose weights exceed float16's range keeps its plain form.
    """
    packed: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and can_pack(child.weight):
                packed.setdefault(id(child), PackedLinear(child.weight, child.bias))
                setattr(module, name, packed[id(child)])
    model.float()
