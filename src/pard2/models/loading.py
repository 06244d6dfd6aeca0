"""From a name on the command line to a transformers model and tokenizer, with errors a person can act on.

A name is a Hugging Face id, a directory, a `.gguf` file, or `smollm2`. Nothing here runs code
from a checkpoint: no remote code, no pickles.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from pard2.errors import Pard2Error, first_line
from pard2.models.gguf import EMBEDDED_TARGET, dequantised, embedded_gguf

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def parse_dtype(name: str | torch.dtype | None) -> torch.dtype:
    """`float32`, `bfloat16` or `float16`; None is bfloat16."""
    if isinstance(name, torch.dtype):
        return name
    if name is None:
        return torch.bfloat16
    if name not in DTYPES:
        raise Pard2Error(f"--dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def parse_device(name: str | torch.device | None) -> torch.device:
    """None is the GPU where there is one, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":  # which holds no values
            raise RuntimeError
    except RuntimeError:
        raise Pard2Error(f"--device {name!r} is not a device; say cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Pard2Error(f"--device {name}: torch sees no CUDA device here; say --device cpu")
    return device


def resolve(name: str) -> str:
    """A directory or hub id that transformers can open."""
    if name == EMBEDDED_TARGET:
        return str(dequantised(embedded_gguf()))
    if name.endswith(".gguf"):
        return str(dequantised(Path(name)))
    if not Path(name).is_dir() and not _HUB_ID.fullmatch(name):
        raise Pard2Error(f"no model {name!r}: neither a directory nor a hub id; {_WAYS}")
    return name


_WAYS = f"give a directory, a hub id (org/name), a .gguf file or {EMBEDDED_TARGET!r}"


def load_config(name: str) -> PreTrainedConfig:
    path = resolve(name)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(name, error) from None


def load_causal_lm(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A frozen causal LM in evaluation mode.

    Raises `Pard2Error` for an unknown name, an architecture that transformers does not know, a
    corrupt or incomplete weight file, or a device that is too small.
    """
    path = resolve(name)
    try:
        # Mismatched sizes are reported below, not raised with a table of all weights.
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        model = model.to(device)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise unreadable(name, error) from None
    except torch.OutOfMemoryError:
        raise Pard2Error(f"{name!r} does not fit on {device}; try --dtype bfloat16, a smaller model or --device cpu") from None
    lacking = sorted(report["missing_keys"])
    mismatched = sorted(key for key, *_shapes in report["mismatched_keys"])
    if lacking or mismatched:
        which = f"lacks {lacking[0]}" if lacking else f"has another shape for {mismatched[0]}"
        more = len(lacking) + len(mismatched) - 1
        raise Pard2Error(f"{name!r}: the weight file {which}" + (f" and {more} more" if more else "") + "; download it again")
    return model.eval().requires_grad_(False)


def load_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer beside a model, or None where there is none (token ids still work)."""
    path = resolve(name)
    directory = Path(path)
    if directory.is_dir() and not any((directory / f).is_file() for f in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(name, error) from None


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def unreadable(name: str, error: Exception) -> Pard2Error:
    """What to tell a person whose model of that name could not be read."""
    if not Path(name).exists() and isinstance(error, OSError):
        return Pard2Error(f"no model {name!r}: no such directory, and the hub has no such id or cannot be reached; {_WAYS}")
    return Pard2Error(f"cannot load the model {name!r}: {first_line(error)}")
