"""In which form the matrices of a model lie in memory while it decodes.

`load_target` and `load_draft` decide on a format; target, draft and decoder hand it on; here each matrix gets
it. A further format is a name in `WeightFormat`, a line in `weight_formats` and a line in `formatted`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pard2.errors import Pard2Error
from pard2.kernels.packed import PackedLinear, can_pack, should_pack

# plain: the layers as they were loaded, whose weights can be read and trained.
# packed: laid out once for this CPU (`packed`); activations are float32.
WeightFormat = Literal["plain", "packed"]


def weight_formats(device: torch.device, dtype: torch.dtype) -> tuple[WeightFormat, ...]:
    """The formats that weights of this dtype have on this device, the one to take by default first."""
    return ("packed", "plain") if should_pack(device, dtype) else ("plain",)


def choose_format(wanted: WeightFormat | None, device: torch.device, dtype: torch.dtype) -> WeightFormat:
    """`wanted`, or by default the first of `weight_formats`.

    Raises `Pard2Error` for one that is not among them.
    """
    formats = weight_formats(device, dtype)
    if wanted is not None and wanted not in formats:
        raise Pard2Error(f"`weight_format` {wanted!r}: {dtype} weights on {device} can be {' or '.join(formats)}")
    return wanted or formats[0]


def formatted(weight: Tensor, bias: Tensor | None, weight_format: WeightFormat) -> PackedLinear | None:
    """The linear layer of a weight [out, in] and a bias [out] in this format; None where it stays plain.

    A matrix with values outside float16's range does in any format.
    """
    return PackedLinear(weight, bias) if weight_format == "packed" and can_pack(weight) else None


def convert_linears(model: nn.Module, weight_format: WeightFormat) -> None:
    """Bring, in place, the linear layers of a frozen model into this format; the rest then runs in float32.

    A layer that the model has in two places stays one.
    """
    if weight_format == "plain":
        return
    converted: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and (made := converted.get(id(child)) or formatted(child.weight, child.bias, weight_format)) is not None:
                converted[id(child)] = made
                setattr(module, name, made)
    model.float()
