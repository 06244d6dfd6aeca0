"""Reading and writing EAGLE-3 drafts, in the plain layout that vLLM and SGLang read (METHOD: section 9), and
in speculators'.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from pard2.checkpoints.eagle3_config import Eagle3Keys, plain_keys, read_plain
from pard2.checkpoints.eagle3_weights import EMBEDDING, FILES, check_tensors, read_tensors, token_ids_of, vocabulary_tensors
from pard2.checkpoints.hub import commit_of
from pard2.checkpoints.loading import config_keys, model_directory
from pard2.checkpoints.speculators import MODEL_TYPE, read_speculators, speculators_keys
from pard2.checkpoints.weight_files import WHOLE
from pard2.errors import Pard2Error
from pard2.files import whole_directory
from pard2.kernels.weight_format import WeightFormat
from pard2.models.eagle3 import Eagle3Draft, default_layers
from pard2.models.identity import warn_of_another
from pard2.models.target import Target

Layout = Literal["eagle3", "speculators"]


def is_eagle3(config: Mapping[str, Any]) -> bool:
    """Whether the keys of a config.json are an EAGLE-3 draft's, in either layout."""
    names = config.get("architectures")
    named = isinstance(names, list) and any(isinstance(one, str) and "eagle3" in one.lower() for one in names)
    return config[MODEL_TYPE] == "eagle3" if MODEL_TYPE in config else named


def read_eagle3_keys(name: str, keys: dict[str, Any]) -> Eagle3Keys:
    """What a config.json says. Raises `Pard2Error` where it is damaged."""
    return (read_speculators if MODEL_TYPE in keys else read_plain)(keys, name)


def load_eagle3(name: str, target: Target, dtype: torch.dtype, weight_format: WeightFormat | None = None, sequences: int = 1) -> Eagle3Draft:
    """An EAGLE-3 draft on its target's device; on `meta` none of its weights are read.

    name: a directory or hub id.
    weight_format, sequences: as for `load_target`.

    Raises `Pard2Error` for what does not fit the target or its own config. Warns of a draft that was made for
    another target.
    """
    keys = read_eagle3_keys(name, config_keys(name))
    _check_target(name, keys, target)
    if target.device.type == "meta":
        names = _stored_names(name)
        own = EMBEDDING in names if names is not None else keys.config.hidden_size != target.hidden_size
        return _empty(name, keys, target, torch.arange(keys.size), own).eval().requires_grad_(False)
    directory = model_directory(name, "config.json", *FILES)
    stored = read_tensors(directory, name)
    draft = _empty(name, keys, target, token_ids_of(name, keys, stored), own_embedding=EMBEDDING in stored)
    check_tensors(name, draft.state_dict(), stored)
    draft.load_state_dict({key: stored[key].to(dtype, copy=True) for key in draft.state_dict()}, assign=True)
    draft.config._commit_hash = commit_of(directory)
    warn_of_another(name, draft.spec.made_for, target.identity)
    draft = draft.to(target.device).eval().requires_grad_(False)
    draft.convert(weight_format or "plain")
    return draft


def _stored_names(name: str) -> set[str] | None:
    """Of the tensors of a checkpoint that is on this disk; None where its weights are not."""
    directory = model_directory(name, "config.json")
    return set(read_tensors(directory, name)) if any(any(directory.glob(file)) for file in FILES) else None


def _empty(name: str, keys: Eagle3Keys, target: Target, token_ids: Tensor, own_embedding: bool) -> Eagle3Draft:
    """The draft without weights, but with its rotary frequencies where the target has a device."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # a second of imports

    spec = keys.spec(default_layers(target.num_states - 1) if keys.layers is None else ())
    embedding = None if own_embedding else target.model.get_input_embeddings()
    if embedding is not None and keys.config.hidden_size != target.hidden_size:
        raise Pard2Error(
            f"{name!r} is {keys.config.hidden_size} wide and has no embedding of its own; that of {target.name!r} is {target.hidden_size} wide"
        )
    with torch.device("meta"):
        draft = Eagle3Draft(keys.config, spec, token_ids, embedding, target.tokenizer, name)
    if target.device.type != "meta":
        draft.rotary_emb = LlamaRotaryEmbedding(keys.config)
    draft.token_ids = token_ids if target.device.type != "meta" else token_ids.to("meta")
    return draft


def _check_target(name: str, keys: Eagle3Keys, target: Target) -> None:
    """Raises `Pard2Error` unless a draft of this config can read this target's features and tokens."""
    vocabulary = keys.config.vocab_size
    if vocabulary != target.vocab_size:
        raise Pard2Error(
            f"{name!r} was made for a vocabulary of {vocabulary}, the target {target.name!r} has one of {target.vocab_size}; "
            "an EAGLE-3 draft serves only the target that it was trained for"
        )
    if keys.owner_width != target.hidden_size:
        raise Pard2Error(
            f"{name!r} reads hidden states {keys.owner_width} wide, those of {target.name!r} are {target.hidden_size}; "
            "an EAGLE-3 draft serves only the target that it was trained for"
        )
    for layer in keys.layers or ():
        if not 0 <= layer < target.num_states:
            raise Pard2Error(
                f"{name!r} reads hidden state {layer} of a target with {target.num_states} (0 to {target.num_states - 1}); was it trained "
                "for another?"
            )


def save_eagle3(draft: Eagle3Draft, directory: str | Path, dtype: torch.dtype | None = None, layout: Layout = "eagle3") -> None:
    """Write a checkpoint; the directory appears whole, replacing an older one.

    dtype: of the written tensors, by default as they are.
    layout: the plain one, or speculators'.
    """
    kind = dtype or draft.norm.weight.dtype
    said = (speculators_keys if layout == "speculators" else plain_keys)(draft, str(kind).removeprefix("torch."))
    tensors = {key: tensor.detach().to("cpu", kind).clone().contiguous() for key, tensor in draft.state_dict().items()}
    if layout == "speculators":
        tensors = {key.replace("midlayer.", "layers.0."): tensor for key, tensor in tensors.items()}
    with whole_directory(directory) as beside:
        (beside / "config.json").write_text(json.dumps(said, indent=2) + "\n")
        save_file(tensors | vocabulary_tensors(draft.token_ids, draft.vocab_size), beside / WHOLE, metadata={"format": "pt"})
        (beside / WHOLE).chmod(0o644)  # safetensors makes it the owner's alone
