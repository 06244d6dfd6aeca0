"""From a name on the command line to a transformers model and tokenizer, with errors a person can act on.

A name is a Hugging Face id, a directory, a `.gguf` file, or `smollm2`. Nothing here runs code
from a checkpoint: no remote code, no pickles.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from pard2.checkpoints import hub
from pard2.checkpoints.embedded import EMBEDDED
from pard2.checkpoints.gguf import dequantised, described, gguf_file
from pard2.checkpoints.gguf_weights import stored_format
from pard2.checkpoints.progress_bars import without_bars
from pard2.checkpoints.quantisation import check_quantisation, check_unread, placement
from pard2.checkpoints.weight_choice import choose_format
from pard2.checkpoints.weight_files import INDEX, WHOLE, check_weights, incomplete, open_weights, wanted_weights, weight_names
from pard2.errors import Pard2Error, first_line
from pard2.hf import GenerationConfig, PreTrainedConfig, PreTrainedModel, Tokenizer
from pard2.kernels.weight_format import WeightFormat, check_format
from pard2.models.target import Target
from pard2.reading import read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_GENERATION = "generation_config.json"
# Beyond these a config is damaged, and what it describes would take hours to build even without weights.
_MOST = {"num_hidden_layers": 2**12, "hidden_size": 2**24, "num_attention_heads": 2**24, "vocab_size": 2**30, "sliding_window": 2**40}


def parse_dtype(name: str | torch.dtype | None, model: str | None = None) -> torch.dtype:
    """`float32`, `bfloat16` or `float16`; None is bfloat16.

    model: whose checkpoint says what `auto` is; bfloat16 where it says nothing, as a `.gguf` file does.
    """
    if name == "auto" and model is not None:
        stored = None if gguf_file(model) is not None else load_config(model).dtype
        return stored if stored in DTYPES.values() else torch.bfloat16
    if isinstance(name, torch.dtype):
        return name
    if name is None:
        return torch.bfloat16
    if name not in DTYPES:
        raise Pard2Error(f"`dtype` {name!r} is not one of {', '.join([*DTYPES, *(['auto'] if model else [])])}")
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
        raise Pard2Error(f"`device` {name!r} is not a device; say cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Pard2Error(f"`device` {name}: torch sees no CUDA device here; say `device` cpu")
    return device


_WAYS = f"give a directory, a hub id (org/name, or org/name@revision), a .gguf file or {EMBEDDED!r}"


def model_directory(name: str, *patterns: str) -> Path:
    """Where a model lies on this disk. Raises `Pard2Error` if there is none.

    patterns: of the files that are downloaded first, if it is a hub id.
    """
    if (file := gguf_file(name)) is not None:
        return dequantised(file)
    if os.path.isdir(name):  # Path.is_dir raises for what is too long
        return Path(name)
    if (base := name.rpartition("@")[0]) and (base == EMBEDDED or os.path.exists(base)):
        raise Pard2Error(f"{name!r}: {base!r} is on this disk, and only a model of the hub has revisions; leave `revision` away")
    if not hub.is_name(name):
        raise Pard2Error(f"no model {name!r}: neither a directory nor a hub id; {_WAYS}")
    return hub.download(name, list(patterns))


def config_keys(name: str) -> dict[str, Any]:
    """What a model's config.json says, by key: of kinds that transformers does not know, too.

    Raises `Pard2Error` where there is none.
    """
    directory = model_directory(name, "config.json")
    if not (directory / "config.json").is_file():
        raise Pard2Error(f"no checkpoint in {name!r}: config.json is missing; {_WAYS}")
    with load_errors(name):
        _check_objects(directory, "config.json")
        return read_json(directory / "config.json")


def load_config(name: str) -> PreTrainedConfig:
    """A model's config.

    Raises `Pard2Error` for an unknown name, an architecture that transformers does not know,
    and values that no model has.
    """
    directory = model_directory(name, "config.json")
    if not (directory / "config.json").is_file():
        raise Pard2Error(f"no checkpoint in {name!r}: config.json is missing; {_WAYS}")
    with load_errors(name):
        _check_objects(directory, "config.json")
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
        config._commit_hash = hub.commit_of(directory)
        _ = config.to_dict(), config.get_text_config().to_dict()  # what raises, raises here
        check_sizes(config.get_text_config())
        return config


def check_sizes(config: PreTrainedConfig) -> None:
    """Raises `ValueError` for a (text) config with sizes that no model has."""
    for field, most in _MOST.items():
        value = getattr(config, field, None)
        # A window is looked at in architectures, too, that do not know it and so have not checked it.
        least = 0 if field == "sliding_window" else 1  # a model whose windows are off may say 0
        if (type(value) is int and not least <= value <= most) or (field == "sliding_window" and type(value) not in (int, type(None))):
            raise ValueError(f"config.json says {field} = {value!r}")


def load_generation_config(name: str) -> GenerationConfig | None:
    """The model's own, or None: chat models often name their end-of-turn tokens only here."""
    directory = model_directory(name, _GENERATION)
    with load_errors(name):
        _check_objects(directory, _GENERATION)
        config = transformers.GenerationConfig.from_pretrained(directory) if (directory / _GENERATION).is_file() else None
        ends = None if config is None else config.eos_token_id
        if not all(type(end) is int for end in (ends if isinstance(ends, list) else [0 if ends is None else ends])):
            raise ValueError(f"{_GENERATION} says eos_token_id = {ends!r}")
        return config


def empty_model(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    """A causal LM of this config on the `meta` device.

    Raises `Pard2Error` where transformers can make none.
    """
    with load_errors(name), torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def load_causal_lm(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A frozen causal LM in evaluation mode.

    Raises `Pard2Error` for an unknown name, an architecture or a quantisation that
    transformers does not know, a corrupt or incomplete weight file, weights that would be left
    unread, or a device that is too small.
    """
    config = load_config(name)
    quantised = check_quantisation(config, name, device=device)
    directory = model_directory(name, WHOLE, INDEX, _GENERATION)
    options: dict[str, Any] = {"dtype": dtype, "generation_config": load_generation_config(name), "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True  # they are reported below, not raised with a table of all weights
    with load_errors(name):
        names = weight_names(directory)
    model_directory(name, *names)
    with load_errors(name):
        weights = open_weights(directory)
    empty, coded = empty_model(config, name), config.to_dict().get("quantization_config") is not None
    if not coded:
        check_weights(name, wanted_weights(empty), weights)
    with load_errors(name, device), without_bars():
        if coded:
            if find_spec("accelerate") is not None:  # some methods keep what cannot be moved afterwards, and choose a GPU if not told
                options["device_map"] = placement(device)
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                directory, config=config, trust_remote_code=False, use_safetensors=True, **options
            )
        else:  # of these weights and no others, whatever else may lie in the directory
            model, report = type(empty).from_pretrained(None, config=empty.config, state_dict=weights, **options)
        if "device_map" not in options:
            model = model.to(device)
    mismatched = {key for key, *_shapes in report["mismatched_keys"]}
    if report["missing_keys"] or mismatched:
        raise incomplete(name, set(report["missing_keys"]), mismatched)
    check_unread(name, model, report["unexpected_keys"])
    if coded and not quantised:  # de-quantised, into another dtype than was asked for; buffers keep their digits
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)


def load_target(
    name: str,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    weight_format: WeightFormat | None = None,
    sequences: int = 1,
) -> Target:
    """A target and its tokenizer.

    name: a hub id, directory, `.gguf` file or `smollm2`.
    dtype, device: as for `parse_dtype` and `parse_device`.
    weight_format: of its linear layers; by default the fastest that keeps the weights as they are, for so
        many `sequences` at once. Only `plain` weights can be read.
    """
    where, kind = parse_device(device), parse_dtype(dtype, name)
    if weight_format is not None:
        check_format(weight_format, where, kind)  # before the long load
    file = gguf_file(name)
    if file is not None and weight_format == "int8":
        return _load_straight(file, name, kind)
    model = load_causal_lm(name, kind, where)
    weight_format = choose_format(weight_format, model, kind, name, sequences)
    target = Target(model, load_tokenizer(name), name, weight_format)
    if file is not None:
        target.origin = f"{stored_format(file)} expanded to {str(kind).removeprefix('torch.')}"
    return target


def _load_straight(file: Path, name: str, dtype: torch.dtype) -> Target:
    """A target in int8 from a GGUF file, of which never more than a layer is in memory in another form."""
    from pard2.checkpoints.gguf_weights import GgufWeights

    directory = str(described(file))
    with load_errors(name):
        model = empty_model(load_config(directory), name).eval().requires_grad_(False)
        model.generation_config = load_generation_config(directory)
    weight_format = choose_format("int8", model, dtype, name)
    rotary = model.base_model.rotary_emb
    model.base_model.rotary_emb = type(rotary)(config=model.config)  # computed, and in no file
    weights = GgufWeights(file, model, dtype)
    target = Target(model, load_tokenizer(directory), name, weight_format, weights)
    target.origin = f"read straight from {weights.format}, off its weights by {weights.int8_distance:.2%} (root mean square)"
    return target


def load_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer beside a model, or None where there is none (token ids still work)."""
    directory = model_directory(name, "config.json", *_BESIDE_A_TOKENIZER)
    if not any((directory / f).is_file() for f in _TOKENIZER_FILES):
        return None
    with load_errors(name):
        _check_objects(directory, "tokenizer_config.json", "special_tokens_map.json")
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        if not isinstance(tokenizer.chat_template, str | dict | None) or not isinstance(tokenizer.model_max_length, int | float):
            raise ValueError("its tokenizer's chat_template is no text, or its model_max_length no number")
        return tokenizer


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# In the names that transformers gives them, all at the top but the last.
_BESIDE_A_TOKENIZER = (
    "tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "added_tokens.json", "special_tokens_map.json", "chat_template*",
    "additional_chat_templates/*",
)  # fmt: skip


def _check_objects(directory: Path, *names: str) -> None:
    for file in (directory / name for name in names):
        if file.is_file() and not isinstance(read_json(file), dict):
            raise ValueError(f"{file.name} holds no JSON object")


@contextmanager
def load_errors(name: str, device: torch.device | None = None) -> Iterator[None]:
    """Turns whatever transformers makes of a damaged or strange file into a
    `Pard2Error`, and leaves Ctrl-C as it is.

    name: the model's.
    device: where it might not fit.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except torch.OutOfMemoryError:
        raise Pard2Error(f"{name!r} does not fit on {device}; try `dtype` bfloat16, a smaller model or `device` cpu") from None
    except BaseException as error:  # what panics in a tokenizer's Rust is no `Exception`
        raise Pard2Error(f"cannot load the model {name!r}: {first_line(error)}") from None
