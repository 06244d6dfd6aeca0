"""Reading and writing EAGLE-3 drafts, in the plain layout that vLLM and SGLang read (METHOD: section 7), and
in speculators'.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pard2.checkpoints.eagle3_config import Eagle3Keys, plain_keys, read_plain
from pard2.checkpoints.eagle3_health import untrained
from pard2.checkpoints.eagle3_weights import EMBEDDING, FILES, check_fuses, check_tensors, read_tensors, token_ids_of, vocabulary_tensors
from pard2.checkpoints.hub import commit_of
from pard2.checkpoints.loading import config_keys, model_directory
from pard2.checkpoints.speculators import MODEL_TYPE, read_speculators, speculators_keys
from pard2.checkpoints.weight_choice import choose_format
from pard2.checkpoints.weight_files import WHOLE
from pard2.errors import Pard2Error, Pard2Warning
from pard2.files import whole_directory
from pard2.kernels.weight_format import OWN_FORMATS, WeightFormat
from pard2.models.eagle3 import Eagle3Draft, default_layers, rotary_embedding
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
    weight_format, sequences: as for `load_target`; in place of a format of our own kernels, which it cannot
        have, it takes the fastest of the others.

    Raises `Pard2Error` for what does not fit the target or its own config. Warns of a draft that was made for
    another target, that does not say all, or whose weights nobody can have trained.
    """
    keys = read_eagle3_keys(name, config_keys(name))
    layers = _check_target(name, keys, target)
    table = target.model.get_input_embeddings()
    warn_of_another(name, keys.made_for, target.identity, "an EAGLE-3 draft serves the target that it was trained for")
    if target.device.type == "meta":
        names = _stored_names(name)
        own = EMBEDDING in names if names is not None else keys.config.hidden_size != target.hidden_size
        draft = _empty(name, keys, layers, torch.arange(keys.size), None if own else table)
    else:
        draft = open_eagle3(name, keys, layers, table, dtype)
        embedding = table.weight if type(table) is nn.Embedding and draft.owns_embedding else None
        broken = [f"{why}; few of its proposals will be accepted" for why in untrained(draft.state_dict(), embedding)]
        for doubt in (*keys.doubts, *broken):
            warnings.warn(f"the draft {name!r} lacks {doubt}", Pard2Warning, stacklevel=3)
    _check_width(name, draft, target)
    draft.tokenizer = target.tokenizer
    draft = draft.to(target.device).eval().requires_grad_(False)
    if draft.device.type != "meta":
        draft.convert(choose_format(None if weight_format in OWN_FORMATS else weight_format, draft, dtype, name, sequences))
    return draft


def open_eagle3(name: str, keys: Eagle3Keys, layers: tuple[int, ...], embedding: nn.Module, dtype: torch.dtype | None = None) -> Eagle3Draft:
    """The draft of a checkpoint on the CPU, whatever its target is.

    layers: the hidden states that feed it.
    embedding: the target's, or what stands for it.
    dtype: by default each tensor's own.

    Raises `Pard2Error` for files that do not hold what the config says.
    """
    directory = model_directory(name, "config.json", *FILES)
    stored = read_tensors(directory, name)
    draft = checked_eagle3(name, keys, layers, embedding, stored)
    draft.load_state_dict({key: stored[key].to(dtype, copy=True) for key in draft.state_dict()}, assign=True)
    draft.rotary_emb = rotary_embedding(keys.config)
    draft.config._commit_hash = commit_of(directory)
    return draft


def checked_eagle3(name: str, keys: Eagle3Keys, layers: tuple[int, ...], embedding: nn.Module, stored: Mapping[str, Tensor]) -> Eagle3Draft:
    """The draft that these tensors are of, without weights. Raises `Pard2Error` unless they are all that it
    has."""
    check_fuses(name, stored)
    draft = _empty(name, keys, layers, token_ids_of(name, keys, stored), None if EMBEDDING in stored else embedding)
    check_tensors(name, draft.state_dict(), stored)
    return draft


def check_eagle3(draft: Eagle3Draft, name: str) -> None:
    """Raises `Pard2Error` unless the files of a draft that was loaded on `meta` hold all of it."""
    stored = read_tensors(model_directory(name, "config.json", *FILES), name)
    checked_eagle3(name, read_eagle3_keys(name, config_keys(name)), draft.spec.target_layers, draft.embed_tokens, stored)


def _stored_names(name: str) -> set[str] | None:
    """Of the tensors of a checkpoint that is on this disk; None where its weights are not."""
    directory = model_directory(name, "config.json")
    return set(read_tensors(directory, name)) if any(any(directory.glob(file)) for file in FILES) else None


def _empty(name: str, keys: Eagle3Keys, layers: tuple[int, ...], token_ids: Tensor, embedding: nn.Module | None) -> Eagle3Draft:
    """The draft without weights. embedding: None for one of its own."""
    with torch.device("meta"):
        draft = Eagle3Draft(keys.config, keys.spec(layers), token_ids, embedding, name=name)
    draft.token_ids = token_ids.long()
    return draft


def _check_target(name: str, keys: Eagle3Keys, target: Target) -> tuple[int, ...]:
    """The target's hidden states that feed a draft of this config.

    Raises `Pard2Error` unless it can read this target's tokens, and those states.
    """
    only = "an EAGLE-3 draft serves only the target that it was trained for"
    vocabulary, width = keys.config.vocab_size, keys.target_hidden_size
    if vocabulary != target.vocab_size:
        raise Pard2Error(f"{name!r} reads a vocabulary of {vocabulary} tokens, {target.name!r} has {target.vocab_size}; {only}")
    if width != target.hidden_size:
        raise Pard2Error(f"{name!r} reads hidden states {width} wide, those of {target.name!r} are {target.hidden_size}; {only}")
    layers = keys.layers or default_layers(target.num_states - 1)
    for layer in layers:
        if not 0 <= layer < target.num_states:
            raise Pard2Error(f"{name!r} reads hidden state {layer}, {target.name!r} has 0 to {target.num_states - 1}; {only}")
    return layers


def _check_width(name: str, draft: Eagle3Draft, target: Target) -> None:
    if not draft.owns_embedding and draft.hidden_size != target.hidden_size:
        raise Pard2Error(
            f"{name!r} is {draft.hidden_size} wide and lacks `{EMBEDDING}`; that of {target.name!r} is {target.hidden_size} wide: download it again"
        )


def save_eagle3(draft: Eagle3Draft, directory: str | Path, dtype: torch.dtype | None = None, layout: Layout = "eagle3") -> None:
    """Write a checkpoint; the directory appears whole, replacing an older one.

    dtype: of the written tensors, by default as they are.
    layout: the plain one, or speculators'.
    """
    said = (speculators_keys if layout == "speculators" else plain_keys)(draft, str(dtype or draft.fc.weight.dtype).removeprefix("torch."))
    tensors = {key: tensor.detach().to("cpu", dtype or tensor.dtype).clone().contiguous() for key, tensor in draft.state_dict().items()}
    if layout == "speculators":
        tensors = {key.replace("midlayer.", "layers.0."): tensor for key, tensor in tensors.items()}
    with whole_directory(directory) as beside:
        (beside / "config.json").write_text(json.dumps(said, indent=2) + "\n")
        save_file(tensors | vocabulary_tensors(draft.token_ids, draft.vocab_size), beside / WHOLE, metadata={"format": "pt"})
        (beside / WHOLE).chmod(0o644)  # safetensors makes it the owner's alone
