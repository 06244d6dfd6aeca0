"""In which format a model's weights are kept for decoding: what was asked for, else what is fastest here."""

from collections.abc import Sequence

import torch
from torch import nn

from pard2.cache_directory import cache_directory
from pard2.checkpoints.quantisation import is_quantised
from pard2.errors import Pard2Error
from pard2.hf import PreTrainedModel
from pard2.kernels.weight_format import OWN_FORMATS, WeightFormat, check_format, has_panels, weight_formats
from pard2.models.eagle3 import Eagle3Draft
from pard2.runtime.fastest_format import Times, fastest, format_times
from pard2.runtime.llama_decoder import is_llama_like

WEIGHTS = ("auto", "bf16", "int8")


def asked_format(weights: str, device: torch.device, dtype: torch.dtype, parameter: str = "weights") -> WeightFormat | None:
    """What the word `auto`, `bf16` or `int8` means for a target; None for the fastest that keeps its
    weights as they are.

    parameter: its name, for errors.

    Raises `Pard2Error` for another word, and where it does not go with device and dtype.
    """
    if weights not in WEIGHTS:
        raise Pard2Error(f"`{parameter}` {weights!r} is not one of {', '.join(WEIGHTS)}")
    if weights == "int8":
        if device.type != "cpu":
            raise Pard2Error(f"`{parameter}` int8 is for decoding on a CPU, not on {device}; say `device` cpu, or leave `{parameter}` away")
        if not has_panels():
            raise Pard2Error(
                f"`{parameter}` int8 needs the package numba (pip install 'pard2[cpu]') and a processor with AVX2 and FMA, or of ARM's kind"
            )
        return "int8"
    if weights == "bf16" and dtype != torch.bfloat16:
        raise Pard2Error(f"`{parameter}` bf16 does not go with `dtype` {str(dtype).removeprefix('torch.')}; leave one of them away")
    return None


def choose_format(
    wanted: WeightFormat | None, model: PreTrainedModel | Eagle3Draft, dtype: torch.dtype, name: str, sequences: int = 1, draft: bool = False
) -> WeightFormat:
    """`wanted`, or else the fastest for so many sequences at once.

    A draft may take int8 unasked: it decides how fast the text comes, never what it says.

    name: the model's, for errors. Raises `Pard2Error` for a format that it cannot have.
    """
    if is_quantised(model):  # its layers are their method's, and other parts may not be cast either
        if wanted not in (None, "plain"):
            raise Pard2Error(f"`weights` {wanted}: {name!r} is quantised already; leave `weights` away, or name the unquantised model")
        return "plain"
    own = is_llama_like(model)
    if wanted is not None:
        check_format(wanted, model.device if model.device.type != "meta" else torch.device("cpu"), dtype)
        if wanted in OWN_FORMATS and not own:
            raise Pard2Error(
                f"`weights` {wanted} needs a model of Llama's kind (Llama, Qwen2, Qwen3, Mistral), and {name!r} is a {type(model).__name__}"
            )
        if wanted == "int8" and (damaged := _not_finite(model)):
            raise Pard2Error(f"{name!r}: {damaged} holds NaN or infinity, which int8 cannot; the file is damaged, or take `weights` bf16")
        return wanted
    names = [one for one in weight_formats(model.device, dtype) if one not in (() if own else OWN_FORMATS)]
    if "int8" in names and not (draft and dtype != torch.float32 and not _not_finite(model)):
        names.remove("int8")
    faster = [one for one in names if one != "plain"]
    if len(faster) < 2:
        return faster[0] if faster else "plain"
    return fastest(measured_times(faster), sequences)


def measured_times(formats: Sequence[WeightFormat]) -> Times:
    """As this machine once took for them, in the user's cache directory."""
    return format_times(formats, cache_directory() / "formats.json")


def _not_finite(model: nn.Module) -> str | None:
    """The name of a weight that holds NaN or infinity."""
    held = ((name, weight) for name, weight in model.named_parameters() if weight.device.type != "meta")
    return next((name for name, weight in held if not bool(weight.abs().amax().isfinite())), None)
