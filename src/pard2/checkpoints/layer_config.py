"""The config of a model that consists of some of another's layers."""

import copy
from collections.abc import Sequence
from typing import Any

from pard2.errors import Pard2Error
from pard2.hf import PreTrainedConfig

_FIRST = ("first_k_dense_replace", "num_dense_layers")  # so many of the first layers differ from all others
_TIES = {
    "num_kv_shared_layers": "the last layers read the keys and values of earlier ones",
    "hidden_size_per_layer_input": "each layer reads the tokens for itself, which a draft's layers do not get",
}


def config_of_layers(config: PreTrainedConfig, layers: Sequence[int], name: str) -> PreTrainedConfig:
    """The config of a model that has only these layers of the model `name`, as it is read back from a file.

    layers: their numbers, rising.

    Raises `Pard2Error`, naming the entry, for what no config can say of them.
    """
    text = config.get_text_config()
    said = text.to_dict()
    said.pop("quantization_config", None)  # a layer is taken as it computes
    failure = f"layers {', '.join(map(str, layers))} of {name!r} ({text.model_type}) cannot be cut out"
    for entry, reason in _TIES.items():
        if said.get(entry):
            raise Pard2Error(f"{failure}: by {entry} = {said[entry]} in its config, {reason}; start from a small LM of its family (draft.path)")
    try:
        wanted = {text.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(layers)} | _entries(said, layers, text.num_hidden_layers)
        # Twice, as when it is saved and loaded: each class completes and checks its configs in its own way.
        cut = type(text).from_dict(type(text).from_dict(copy.deepcopy(said | wanted)).to_diff_dict())
    except Exception as error:
        raise Pard2Error(f"{failure}: {' '.join(str(error).split())}; name others") from None
    kept = cut.to_dict()
    for entry, value in wanted.items():
        if entry != "per_layer_config" and kept.get(entry) != value:  # whose numbers may be written "03"
            raise Pard2Error(f"{failure}: their config must say {entry} = {value}, and says {kept.get(entry)}; name others")
    if text is config:
        return cut
    whole = copy.deepcopy(config)
    whole.__dict__.pop("quantization_config", None)
    for part in config.sub_configs:
        if getattr(config, part) is text:
            setattr(whole, part, cut)
    return whole


def _entries(said: dict[str, Any], layers: Sequence[int], total: int) -> dict[str, Any]:
    """The entries of a config that speak of layers by number, for these.

    Raises `ValueError` where there are none.
    """
    wanted: dict[str, Any] = {}
    for entry, value in said.items():
        if isinstance(value, list) and len(value) == total and not entry.endswith("_token_id"):
            wanted[entry] = [value[layer] for layer in layers]
        elif entry in _FIRST and value is not None:
            wanted[entry] = sum(layer < value for layer in layers)
    if said.get("per_layer_config"):
        own = {int(number): entries for number, entries in said["per_layer_config"].items()}
        wanted["per_layer_config"] = {str(new): own[old] for new, old in enumerate(layers) if old in own}
    if "decoder_sparse_step" in said:
        step, dense = said["decoder_sparse_step"], said["mlp_only_layers"] or ()
        wanted["decoder_sparse_step"] = 1
        wanted["mlp_only_layers"] = [new for new, old in enumerate(layers) if old in dense or (old + 1) % step]
    if "moe_layer_interval" in said:
        step, first, last = (said[f"moe_layer_{word}"] for word in ("interval", "start_index", "end_index"))
        sparse = [new for new, old in enumerate(layers) if (old + 1) % step == 0 and first <= old <= last] or [len(layers)]
        if sparse[-1] - sparse[0] >= len(sparse):
            raise ValueError("no moe_layer_interval says where their experts are")
        wanted |= {"moe_layer_interval": 1, "moe_layer_start_index": sparse[0], "moe_layer_end_index": sparse[-1]}
    return wanted
