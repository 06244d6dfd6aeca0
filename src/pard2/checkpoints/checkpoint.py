"""Draft checkpoints in the released layout (METHOD: section 7): read strictly, written whole.

A directory is a plain Hugging Face causal LM plus `warp_model.bin`, the projection. A draft that
shares its target's vocabulary holds neither embedding nor head; `pard2_shared_vocabulary` in its
config says so, and `pard2_mask_embedding` beside the projection is the mask token's row. Options that the released
layout does not know are written only where they are on: `pard2_normalise_features`, and `pard2_mask_feature`, which is
also the name of its vector beside the projection.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pard2.checkpoints.embedded import embedded_draft
from pard2.checkpoints.gguf import EMBEDDED_TARGET
from pard2.checkpoints.loading import Tokenizer, load_causal_lm, load_config, load_tokenizer, model_directory, reading
from pard2.checkpoints.weight_files import WHOLE, check_weights, vocabulary_keys, wanted_weights
from pard2.errors import Pard2Error
from pard2.files import whole_directory
from pard2.kernels.packed import should_pack
from pard2.models.draft import DEFAULT_SCALE, Draft, DraftSpec, SharedEmbedding
from pard2.models.identity import NAME_KEY, SAMPLES_KEY, warn_of_another
from pard2.models.target import Target

PROJECTION_FILES = ("warp_model.bin", "warp_model.safetensors")
MASK_EMBEDDING = "pard2_mask_embedding"
MASK_FEATURE = "pard2_mask_feature"
VOCABULARY = "pard2_vocabulary"
# Published runs trained 16 (PARD-2) and 8 (PARD) slots and did not write the number down.
_PUBLISHED_DRAFT_TOKENS = {"pard2": 16, "pard": 8}
_MOST_DRAFT_TOKENS = 1024
_USE_TI = "use it target-independent (-m pard2-ti)"


def read_spec(config: dict[str, Any], name: str) -> DraftSpec | None:
    """The draft's own keys in a config; None for an ordinary LM. Accepts the older names.

    Raises `Pard2Error` for a draft without its mask token or with a key of the wrong type.
    """
    kind = config.get("spd_type") or ("pard2" if config.get("pard2") else None)
    if kind is None and "pard_token" not in config:
        return None
    kind = kind or "pard"
    if not isinstance(kind, str) or kind not in _PUBLISHED_DRAFT_TOKENS:
        raise Pard2Error(f"{name!r}: spd_type {kind!r} is neither 'pard' nor 'pard2'")
    mask = config.get("pard_token")
    if type(mask) is not int or not 0 <= mask < config.get("vocab_size", 0):
        raise Pard2Error(f"{name!r}: config.json needs `pard_token`, a token id below {config.get('vocab_size')}, but has {mask!r}")
    layers = config.get("pard2_target_layers")
    if layers is not None and not (isinstance(layers, list) and layers and all(type(i) is int for i in layers)):
        raise Pard2Error(f"{name!r}: `pard2_target_layers` must be a list of layer numbers, not {layers!r}")
    made_for = {key: _first(config, name, str, key, default="") for key in (NAME_KEY, SAMPLES_KEY)}
    return DraftSpec(
        mask_token=mask,
        draft_tokens=_first(config, name, int, "pard2_draft_tokens", default=_PUBLISHED_DRAFT_TOKENS[kind]),
        target_layers=tuple(layers) if kind == "pard2" and layers else None,
        target_dim=_first(config, name, int, "pard2_target_dim", "pard_target_dim"),
        scale=_first(config, name, (int, float), "pard2_scale", "pard_scale", "feat_scale", default=DEFAULT_SCALE),
        bias=_first(config, name, bool, "pard2_proj_bias", "proj_bias", default=False),
        shared_vocabulary=_first(config, name, bool, "pard2_shared_vocabulary", default=False),
        normalise_features=_first(config, name, bool, "pard2_normalise_features", default=False),
        mask_feature=_first(config, name, bool, "pard2_mask_feature", default=False),
        vocabulary_size=_first(config, name, int, "pard2_vocabulary_size"),
        made_for=made_for if made_for[SAMPLES_KEY] else None,
        template_arguments=_first(config, name, list, "pard2_chat_template_kwargs"),
    )


def _first(config: dict[str, Any], name: str, kind: type | tuple, *keys: str, default: Any = None) -> Any:
    for key in keys:
        if key in config and config[key] is not None:
            # JSON's true is no number, though Python's is.
            if not isinstance(config[key], kind) or (type(config[key]) is bool and kind is not bool):
                raise Pard2Error(f"{name!r}: config key `{key}` has the wrong type: {config[key]!r}")
            most = _MOST_DRAFT_TOKENS if key == "pard2_draft_tokens" else 2**31
            if kind not in (bool, str, list) and not (1 if kind is int else -most) <= config[key] <= most:
                bound = f"at most {most}" if config[key] > most else "at least 1" if kind is int else "a finite number"
                raise Pard2Error(f"{name!r}: config key `{key}` must be {bound}, not {config[key]}")
            return config[key]
    return default


def spec_keys(spec: DraftSpec) -> dict[str, Any]:
    """The config keys that say `spec`, every one written out."""
    keys: dict[str, Any] = {
        "spd_type": "pard2" if spec.target_layers else "pard",
        "pard2": spec.target_layers is not None,
        "pard_token": spec.mask_token,
        "pard2_draft_tokens": spec.draft_tokens,
    }
    if spec.target_layers:
        keys |= {
            "pard2_target_layers": list(spec.target_layers),
            "pard2_target_dim": spec.target_dim,
            "pard2_scale": spec.scale,
            "pard2_proj_bias": spec.bias,
        }
    options = {
        "pard2_shared_vocabulary": spec.shared_vocabulary,
        "pard2_normalise_features": spec.normalise_features,
        "pard2_mask_feature": spec.mask_feature,
    }
    if spec.vocabulary_size is not None:
        keys["pard2_vocabulary_size"] = spec.vocabulary_size
    if spec.template_arguments is not None:
        keys["pard2_chat_template_kwargs"] = spec.template_arguments
    return keys | (spec.made_for or {}) | {key: True for key, on in options.items() if on}


def inexpressible(spec: DraftSpec) -> list[str]:
    """What of a draft stock readers of the released layout (METHOD: section 7) would leave out, and so decode otherwise."""
    options = {"shared vocabulary": spec.shared_vocabulary, "normalised features": spec.normalise_features, "learned mask feature": spec.mask_feature}
    options["part of the vocabulary"] = spec.vocabulary_size is not None
    return [option for option, on in options.items() if on]


def load_draft(name: str, target: Target, dtype: torch.dtype, target_dependent: bool | None = None, pack: bool = True) -> Draft:
    """Load a draft, by directory, hub id or `smollm2`, for a target and check that the two fit.

    target_dependent: True requires the projection; False leaves it aside; None loads it if the
    config names one. pack: as for `load_target`. Raises `Pard2Error` with what would work for: a
    missing or ill-shaped projection, missing `pard2_target_layers`, a vocabulary or tokenizer that is not the target's,
    a corrupt file, a pickle that holds more than tensors. Warns of a draft whose features are another target's.
    """
    if name == EMBEDDED_TARGET:
        name = embedded_draft()
    config = load_config(name)
    spec = read_spec(config.to_dict(), name)
    shared = spec is not None and spec.shared_vocabulary
    if target_dependent and (spec is None or spec.target_layers is None):
        claims = spec is not None and config.to_dict().get("pard2")
        raise Pard2Error(
            f"{name!r} lacks `pard2_target_layers` in its config.json; add it, or {_USE_TI}"
            if claims
            else f"{name!r} is not a PARD-2 draft, so it has no target-dependent mode; use -m {'pard' if spec else 'vsd'}"
        )
    tokenizer = load_tokenizer(name)
    check_vocabulary(name, config.get_text_config().vocab_size, tokenizer, target)
    directory = checkpoint_directory(name)
    wanted = target_dependent is not False and spec is not None and spec.target_layers is not None
    extras = read_projection_file(directory, name, required=wanted) if wanted or shared else {}
    if shared:
        lm = _load_without_vocabulary(directory, name, config, dtype)
    else:
        lm = load_causal_lm(name, dtype, target.device)
    hidden = lm.config.get_text_config().hidden_size
    projection = _projection(spec, extras, hidden, target, name, dtype) if wanted else None
    mask_feature = _mask_feature(spec, extras, hidden, name) if wanted else None
    draft = Draft(lm, spec, projection, tokenizer or target.tokenizer, name, None if mask_feature is None else mask_feature.to(dtype))
    if shared:
        if MASK_EMBEDDING not in extras:
            raise Pard2Error(f"{name!r} shares its target's vocabulary but lacks `{MASK_EMBEDDING}`; download it again")
        if extras[MASK_EMBEDDING].shape != (hidden,):
            raise Pard2Error(f"{name!r}: `{MASK_EMBEDDING}` is {list(extras[MASK_EMBEDDING].shape)}, expected {[hidden]}; download it again")
        if draft.hidden_size != target.hidden_size:
            raise Pard2Error(f"{name!r} shares the vocabulary of a target {draft.hidden_size} wide; {target.name!r} is {target.hidden_size}")
        tables = target.model.get_input_embeddings(), target.model.get_output_embeddings()
        draft.share_vocabulary(*tables, extras[MASK_EMBEDDING].to(dtype), _vocabulary(spec, extras, target, name))
    if wanted or shared:
        warn_of_another(name, spec.made_for, target.identity)
    # The dtype was given to each part: cast as a whole, the draft would lose its rotary frequencies' digits.
    draft = draft.to(target.device).eval().requires_grad_(False)
    if pack and should_pack(target.device, dtype):
        draft.pack()
    return draft


def check_vocabulary(name: str, vocab_size: int, tokenizer: Tokenizer | None, target: Target) -> None:
    """Raises `Pard2Error` unless the draft's token ids mean what the target's mean."""
    if tokenizer is None or target.tokenizer is None:
        if vocab_size != target.vocab_size:
            raise Pard2Error(
                f"{name!r} has a vocabulary of {vocab_size}, the target {target.name!r} one of {target.vocab_size}; "
                "a draft must come from the target's own family"
            )
        return
    ours, theirs = tokenizer.get_vocab(), target.tokenizer.get_vocab()
    # A mask token may be added or renamed; a token that both have must have one id.
    differing = sum(theirs.get(token, number) != number for token, number in ours.items())
    common = len(ours.keys() & theirs.keys())
    if differing or common < 0.95 * max(len(ours), len(theirs)):
        raise Pard2Error(
            f"the tokenizer of {name!r} is not that of the target {target.name!r} "
            f"({common} of {len(theirs)} tokens in common, {differing} with another id); a draft must come from the target's own family"
        )


def _projection(spec: DraftSpec, tensors: dict[str, Tensor], hidden: int, target: Target, name: str, dtype: torch.dtype) -> nn.Linear:
    for layer in spec.target_layers:
        if not -target.num_states <= layer < target.num_states:
            raise Pard2Error(f"{name!r} wants hidden state {layer} of a target with {target.num_states}; was it trained for another? {_USE_TI}")
    width = target.hidden_size * len(spec.target_layers)
    if spec.target_dim is not None and spec.target_dim != width:
        raise Pard2Error(
            f"{name!r} wants features {spec.target_dim} wide, {target.name!r} gives {width}: it was trained for another target; {_USE_TI}"
        )
    weight = tensors.get("target_proj.weight")
    if weight is None:
        raise Pard2Error(f"{name!r}: the projection file lacks `target_proj.weight`; download it again, or {_USE_TI}")
    if tuple(weight.shape) != (hidden, width):
        raise Pard2Error(f"{name!r}: `target_proj.weight` is {list(weight.shape)}, expected {[hidden, width]}; {_USE_TI}")
    bias = tensors.get("target_proj.bias")
    if spec.bias != (bias is not None):
        fault = "lacks" if bias is None else "has"
        raise Pard2Error(f"{name!r}: config says pard2_proj_bias = {spec.bias}, the projection file {fault} a bias; {_USE_TI}")
    linear = nn.Linear(width, hidden, bias=spec.bias)
    linear.load_state_dict({"weight": weight} | ({"bias": bias} if bias is not None else {}))
    return linear.to(dtype)


def _mask_feature(spec: DraftSpec, tensors: dict[str, Tensor], hidden: int, name: str) -> Tensor | None:
    vector = tensors.get(MASK_FEATURE)
    if spec.mask_feature != (vector is not None):
        fault = "lacks" if vector is None else "has"
        raise Pard2Error(f"{name!r}: config says {MASK_FEATURE} = {spec.mask_feature}, the projection file {fault} that vector; {_USE_TI}")
    if vector is not None and tuple(vector.shape) != (hidden,):
        raise Pard2Error(f"{name!r}: `{MASK_FEATURE}` is {list(vector.shape)}, expected {[hidden]}; {_USE_TI}")
    return vector


def _vocabulary(spec: DraftSpec, tensors: dict[str, Tensor], target: Target, name: str) -> Tensor | None:
    token_ids = tensors.get(VOCABULARY)
    size = None if token_ids is None else len(token_ids)
    if size != spec.vocabulary_size:
        raise Pard2Error(
            f"{name!r}: config says pard2_vocabulary_size = {spec.vocabulary_size}, its `{VOCABULARY}` lists {size or 'no'} tokens; download it again"
        )
    if token_ids is not None and (len(token_ids.unique()) != size or token_ids.min() < 0 or token_ids.max() >= target.vocab_size):
        raise Pard2Error(f"{name!r}: its `{VOCABULARY}` is no list of different tokens of {target.name!r}; download it again")
    return token_ids


def read_projection_file(directory: Path, name: str, required: bool) -> dict[str, Tensor]:
    """The tensors beside the LM, read without executing anything that the file may hold."""
    for file in (directory / f for f in PROJECTION_FILES):
        if not file.is_file():
            continue
        try:
            tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # torch.load fails in as many ways as a file can be damaged
            raise Pard2Error(f"{file} is corrupt or holds more than tensors, so it was not loaded; download it again, or {_USE_TI}") from None
        if not isinstance(tensors, dict) or not all(_lies_in_memory(tensor) for tensor in tensors.values()):
            raise Pard2Error(f"{file} is not a dictionary of tensors; download it again, or {_USE_TI}")
        return tensors
    if required:
        raise Pard2Error(f"{name!r} has no projection ({' or '.join(PROJECTION_FILES)}); download it whole, or {_USE_TI}")
    return {}


def _lies_in_memory(tensor: Any) -> bool:
    """Whether it is a whole tensor of numbers or token ids; a pickle may also hold sparse and nested ones, and some without values."""
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.int64)
    whole = isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type == "cpu"
    return whole and tensor.dtype in kinds


def _load_without_vocabulary(directory: Path, name: str, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The LM of a shared-vocabulary draft, with one-row tables in place of embedding and head."""
    try:
        tensors = load_file(directory / WHOLE)
    except Exception:  # as many as a file can be damaged in
        raise Pard2Error(f"{name!r}: model.safetensors is missing or corrupt; download it again") from None
    with reading(name), torch.device("meta"):
        own = wanted_weights(without_vocabulary(config, dtype), shared_vocabulary=True)
    for key, tensor in own.items():
        if key not in tensors:
            raise Pard2Error(f"{name!r}: model.safetensors lacks {key}; download it again")
        if tensors[key].shape != tensor.shape:
            raise Pard2Error(f"{name!r}: {key} is {list(tensors[key].shape)}, its config says {list(tensor.shape)}; download it again")
    check_weights(name, own, tensors)
    lm = without_vocabulary(config, dtype)
    lm.load_state_dict({key: tensors[key].to(dtype) for key in own}, strict=False)
    return lm


def without_vocabulary(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A causal LM of this config whose embedding and head have a single row, to be replaced by `Draft.share_vocabulary`."""
    small = copy.deepcopy(config)
    small.vocab_size, small.pad_token_id, small.tie_word_embeddings = 1, None, False
    lm = AutoModelForCausalLM.from_config(small, dtype=dtype)
    lm.config.vocab_size, lm.config.pad_token_id = config.vocab_size, config.pad_token_id
    return lm


def checkpoint_directory(name: str) -> Path:
    """Where a draft named by directory, hub id or `smollm2` lies on this disk; downloaded first if need be. Raises `Pard2Error` if there is none."""
    if name == EMBEDDED_TARGET:
        return Path(embedded_draft())
    return model_directory(name, "*.json", "*.safetensors", "*.bin", "*.jinja")


def save_draft(draft: Draft, directory: str | Path, dtype: torch.dtype | None = None, vocabulary: bool = True) -> None:
    """Write a checkpoint; the directory appears whole, replacing an older one.

    dtype: of the written tensors, by default as they are. vocabulary: False leaves out embedding, head and
    tokenizer of a draft that shares its target's; True writes them, which makes any draft an ordinary LM.
    """
    embedding, head = draft.lm.get_input_embeddings(), draft.lm.get_output_embeddings()
    shared = isinstance(embedding, SharedEmbedding)
    if not vocabulary and not shared:
        raise ValueError("only a draft that shares its target's vocabulary can be saved without one")
    embedding_key, head_key = vocabulary_keys(draft.lm)
    tensors = {key: tensor for key, tensor in draft.lm.state_dict().items() if not key.endswith(".mask_row")}
    extras: dict[str, Tensor] = {}
    if isinstance(embedding, SharedEmbedding) and vocabulary:
        tensors |= {embedding_key: embedding.weight, head_key: head.weight if draft.short_head is None else draft.short_head.whole.weight}
    elif isinstance(embedding, SharedEmbedding):
        extras[MASK_EMBEDDING] = embedding.mask_row
        if draft.short_head is not None:
            extras[VOCABULARY] = draft.short_head.token_ids.int()
    elif draft.lm.config.tie_word_embeddings:
        tensors.pop(head_key, None)
    if draft.projection is not None:
        extras["target_proj.weight"] = draft.projection.weight
        if draft.projection.bias is not None:
            extras["target_proj.bias"] = draft.projection.bias
    if draft.mask_feature is not None:
        extras[MASK_FEATURE] = draft.mask_feature
    config = copy.deepcopy(draft.lm.config)
    config.architectures = [type(draft.lm).__name__]
    if draft.spec is not None:
        shared = shared and not vocabulary
        config.update(
            spec_keys(dataclasses.replace(draft.spec, shared_vocabulary=shared, vocabulary_size=draft.spec.vocabulary_size if shared else None))
        )

    def written(tensor: Tensor) -> Tensor:
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", kind).clone().contiguous()

    with whole_directory(directory) as beside:
        config.dtype = str(dtype or draft.lm.dtype).removeprefix("torch.")
        config.save_pretrained(beside)
        save_file({key: written(tensor) for key, tensor in tensors.items()}, beside / "model.safetensors", metadata={"format": "pt"})
        (beside / "model.safetensors").chmod(0o644)  # safetensors makes it the owner's alone
        if extras:
            torch.save({key: written(tensor) for key, tensor in extras.items()}, beside / PROJECTION_FILES[0])
        if draft.lm.generation_config is not None:
            draft.lm.generation_config.save_pretrained(beside)
        if draft.tokenizer is not None and vocabulary:
            draft.tokenizer.save_pretrained(beside)
