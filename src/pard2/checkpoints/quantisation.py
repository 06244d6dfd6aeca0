"""Quantised models: told from the config alone, and from what a loaded model left unread."""

import copy
import re
from collections.abc import Iterable

import torch
from torch import nn

from pard2.errors import Pard2Error, first_line
from pard2.hf import PreTrainedConfig, PreTrainedModel

# Scales of activations and caches, which plain weights do without, and buffers that older checkpoints kept.
_UNNEEDED = re.compile(
    r"(input|output|activation|act|[qkv]|kv|prob)_(scales?|zero_points?)$|rotary|inv_freq|position_ids$|(masked_bias|attn\.bias|attention\.bias)$"
)
_SCALES = re.compile(r"scales?(_\w+)?$|(^|[._])(qweight|q?zeros|zero_points?|g_idx|absmax|SCB|quant_\w+|weight_packed|weight_shape|codebooks?)")


def check_quantisation(config: PreTrainedConfig, name: str, plain: bool = False, device: torch.device | None = None) -> bool:
    """Whether a model of this config is quantised once it is loaded; some methods give
    plain weights on some devices.

    plain: plain weights are needed, to train it or to cut a draft out of it.
    device: where it shall be loaded; the config is changed so that float8 becomes plain on a CPU, beside
        whatever GPU. None where nothing is loaded.

    Raises `Pard2Error` for a quantised model where plain weights are needed, and for a method that
    transformers does not know, whose scales it would leave unread, or that it cannot read here,
    for want of a package or a GPU.
    """
    asked = config.to_dict().get("quantization_config") or config.get_text_config().to_dict().get("quantization_config")
    if asked is None:
        return False
    from transformers.quantizers import AutoHfQuantizer

    method = asked.get("quant_method") if isinstance(asked, dict) else asked
    method = method[:] if isinstance(method, str) else method  # the text of an enum's member
    if device is not None and device.type == "cpu" and method == "fp8" and isinstance(asked, dict):
        asked = config.quantization_config = asked | {"dequantize": True}
    try:
        if not AutoHfQuantizer.supports_quant_method(asked):
            raise ValueError("transformers does not know this method")
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(asked), pre_quantized=True)
        quantizer.validate_environment(device_map=placement(device), weights_only=True)
    except Exception as error:  # each method fails in its own way
        raise Pard2Error(f"{name!r} is quantised ({method}) and cannot be read: {first_line(error)}; name the unquantised model") from None
    quantised = not getattr(quantizer.quantization_config, "dequantize", False)
    if quantised and plain:
        raise Pard2Error(
            f"{name!r} is quantised ({method}): no draft can be cut out of it, and it cannot be trained; make the draft out of the unquantised model "
            "(`pard2 draft init`) and name it as draft.path"
        )
    return quantised


def placement(device: torch.device | None) -> dict[str, str] | None:
    """The `device_map` of a whole model on one device. None for nothing said."""
    return None if device is None else {"": str(device)}


def is_quantised(model: nn.Module) -> bool:
    """Whether transformers has loaded the model with codes in place of weights."""
    return bool(getattr(model, "is_quantized", False))


def check_unread(name: str, model: PreTrainedModel, unread: Iterable[str]) -> None:
    """Raises `Pard2Error` for stored weights that the model left unread and that change what it computes.

    Those are scales, and parts of its own layers; another head, a vision tower or layers after
    its last one change nothing.
    """
    modules = dict(model.named_modules())
    for key in sorted(unread):
        if _UNNEEDED.search(key):
            continue
        if _SCALES.search(key):
            raise Pard2Error(f"{name!r}: {key} belongs to quantised weights, and its config.json names no method; name the unquantised model")
        for place in (key, f"{model.base_model_prefix}.{key}"):
            while place not in modules:
                place = place.rpartition(".")[0]  # in the end that of the model itself
            if modules[place] not in (model, model.base_model) and not isinstance(modules[place], nn.ModuleList):
                raise Pard2Error(
                    f"{name!r}: its weight file holds {key}, which no {type(model).__name__} of its config has, so it would say something else; "
                    "correct config.json, or download it again"
                )
