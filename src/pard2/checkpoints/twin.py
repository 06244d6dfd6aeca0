"""A small random model of another's architecture: what cannot run or be trained with
the one cannot with the other.

Configs have hundreds of entries that change what a model computes. Running a twin needs no
list of them, and no weights.
"""

import json
from typing import Any

import torch
import transformers

from pard2.checkpoints.layer_config import config_of_layers
from pard2.errors import Pard2Error
from pard2.hf import PreTrainedConfig, PreTrainedModel
from pard2.runtime.hidden_states import HiddenStateRecorder
from pard2.runtime.support import check_supported, new_decoder

VOCABULARY = 61
_INNER = 64  # width of what lies between two matrices of a layer
_LOUD = 0.15  # deviation of its weights: logits large enough for a cap or a scale to show


def twin(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel | None:
    """On the CPU, in float32: few heads of the same size, narrow MLPs, few tokens,
    a layer or two of each kind.

    None where such a model does not run: then only the model itself can tell. torch's
    random state stays as it is.
    """
    text = config.get_text_config()
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            small = type(text).from_dict(_narrow(_some_layers(text)))
            model = transformers.AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval().requires_grad_(False)
            sound = model(torch.arange(8)[None], use_cache=False).logits.isfinite().all()
    except Exception:  # as many kinds of failure as there are modeling files
        return None
    return model if sound else None


def _some_layers(text: PreTrainedConfig) -> PreTrainedConfig:
    """With the first and last layer of each kind, as far as its config can say so; else with all."""
    try:
        kinds: dict[str, list[int]] = {}
        for layer in range(text.num_hidden_layers):
            kinds.setdefault(json.dumps(config_of_layers(text, [layer], "").to_dict(), default=str), []).append(layer)
        return config_of_layers(text, sorted({layer for same in kinds.values() for layer in (same[0], same[-1])}), "")
    except Pard2Error:
        return text


def _narrow(text: PreTrainedConfig) -> dict[str, Any]:
    said = text.to_dict()
    names = {name: text.attribute_map.get(name, name) for name in ("num_attention_heads", "num_key_value_heads", "hidden_size")}
    heads, hidden = said[names["num_attention_heads"]], said[names["hidden_size"]]
    groups = said.get(names["num_key_value_heads"]) or heads
    few_groups = min(groups, 2)
    few_heads = few_groups * min(heads // groups, 2)
    for name, value in said.items():
        if name.endswith("_token_id"):
            said[name] = None
        elif name.startswith("vocab_size"):
            said[name] = VOCABULARY
        elif "intermediate_size" in name or name in ("ffn_dim", "n_inner"):
            said[name] = [_INNER] * len(value) if isinstance(value, list) else value and _INNER
        elif value == hidden and name in (names["hidden_size"], "word_embed_proj_dim"):
            said[name] = hidden * few_heads // heads
    said |= {names["num_attention_heads"]: few_heads, "initializer_range": _LOUD}
    said.pop("quantization_config", None)
    if said.get(names["num_key_value_heads"]) is not None:
        said[names["num_key_value_heads"]] = few_groups
    return said


def check_decodable(model: PreTrainedModel, name: str) -> None:
    """Raises `Pard2Error` for a model that a decoder would run wrongly, as far as
    its config and a `twin` tell.

    model: may be on the `meta` device.
    """
    check_supported(model, name)
    small = twin(model.config)
    if small is not None:
        new_decoder(small, name, HiddenStateRecorder(small))
