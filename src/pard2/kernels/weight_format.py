"""In which form the matrices of a model lie in memory while it decodes.

`load_target` and `load_draft` decide on a format; target, draft and decoder hand it on; here each matrix gets
it. A further format is a name in `PackedFormat`, a line in `weight_formats` and a line in `PackedLinear`.
"""

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn

from pard2.errors import Pard2Error
from pard2.kernels.half_embedding import HalfEmbedding
from pard2.kernels.packed import PackedFormat, PackedLinear, can_pack, has_bfloat16_products, has_float16_products

# plain: the layers as they were loaded, whose weights can be read and trained.
# The others are laid out once for this CPU (`packed`); activations are float32.
WeightFormat = Literal["plain"] | PackedFormat
OWN_FORMATS: tuple[WeightFormat, ...] = ("panels", "int8")  # of our own kernels, which models of Llama's kind alone have


def has_panels() -> bool:
    """Whether our own kernels run here: with numba (extra `cpu`), on a processor with what they are
    written for.
    """
    if find_spec("numba") is None:
        return False
    from pard2.kernels.vectors import has_vectors

    return has_vectors()


def weight_formats(device: torch.device, dtype: torch.dtype) -> tuple[WeightFormat, ...]:
    """The formats that weights of this dtype can have on this device. All but int8 hold them as they are."""
    formats: list[WeightFormat] = ["plain"]
    if device.type == "cpu":
        if dtype == torch.bfloat16 and has_bfloat16_products():
            formats.append("onednn")
        if dtype != torch.float32 and has_float16_products():
            formats.append("fbgemm")
        if has_panels():
            formats += ["panels", "int8"] if dtype == torch.bfloat16 else ["int8"]
    return tuple(formats)


def check_format(wanted: WeightFormat, device: torch.device, dtype: torch.dtype) -> None:
    """Raises `Pard2Error` for a format that weights of this dtype cannot have on this device."""
    formats = weight_formats(device, dtype)
    if wanted not in formats:
        raise Pard2Error(f"`weight_format` {wanted!r}: {dtype} weights on {device} can be {' or '.join(formats)}")


def formatted(weight: Tensor, bias: Tensor | None, weight_format: WeightFormat) -> PackedLinear | None:
    """The linear layer of a weight [out, in] and a bias [out] in this format; None where it stays plain.

    A matrix with values outside float16's range stays plain in FBGEMM's format.
    """
    if weight_format == "plain" or (weight_format == "fbgemm" and not can_pack(weight)):
        return None
    return PackedLinear(weight, bias, weight_format)


def convert_linears(model: nn.Module, weight_format: WeightFormat) -> None:
    """Bring, in place, the linear layers of a frozen model into this format; the rest then runs in float32,
    and embedding tables keep their precision.

    A layer that the model has in two places stays one.
    """
    if weight_format == "plain":
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Embedding and child.weight.dtype in (torch.bfloat16, torch.float16):
                setattr(module, name, HalfEmbedding(child.weight))
    converted: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and (made := converted.get(id(child)) or formatted(child.weight, child.bias, weight_format)) is not None:
                converted[id(child)] = made
                setattr(module, name, made)
    model.float()
