"""What the config.json of an EAGLE-3 draft says (METHOD: section 7), in the plain layout, and back.

A config is a dictionary of JSON values. speculators' own form of it is `speculators.py`'s.
"""

from dataclasses import dataclass
from typing import Any

import transformers

from pard2.checkpoints.draft_spec import first_key
from pard2.checkpoints.loading import check_sizes, load_errors
from pard2.errors import Pard2Error
from pard2.hf import PreTrainedConfig
from pard2.models.eagle3 import DEFAULT_DEPTHS, Eagle3Draft, Eagle3Spec, FeatureNorm
from pard2.models.identity import NAME_KEY, SAMPLES_KEY
from pard2.runtime.windows import attention_windows

ARCHITECTURES = {"llama": "LlamaForCausalLMEagle3", "qwen3": "Eagle3Qwen3ForCausalLM"}  # by the kind of the layer; as vLLM names them
IDS = "eagle_aux_hidden_state_layer_ids"
# Of a draft and not of its layer; the layer's config is made of the others.
_OF_DRAFT = {
    "architectures", "draft_vocab_size", "target_hidden_size", "num_aux_hidden_states", "norm_before_residual", "norm_before_fc", "fc_norm",
    "use_aux_norm", "norm_output", "eagle_config", IDS, "pard2_draft_tokens", NAME_KEY, SAMPLES_KEY, "pard2_chat_template_kwargs",
}  # fmt: skip
_OF_FILE = {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "auto_map", "is_decoder", "tie_word_embeddings"}
_ROPE_COPIES = {"rope_theta", "rope_scaling", "partial_rotary_factor"}  # for engines that do not know `rope_parameters`


@dataclass(frozen=True, kw_only=True)
class Eagle3Keys:
    """What a config says of a draft, before its weights are seen; the rest is as in `Eagle3Spec`.

    config: of its layer.
    layers: the target's hidden states, None for the default ones of its target.
    size: D, of the tokens that it can propose.
    made_for: as in `DraftSpec`; the name with an empty second entry where no weights are known.
    doubts: what the config lacks, each with what is assumed.
    """

    config: PreTrainedConfig
    layers: tuple[int, ...] | None
    target_hidden_size: int
    size: int
    draft_tokens: int
    norm_before_residual: bool
    norm_output: bool
    feature_norm: FeatureNorm
    made_for: dict[str, str] | None
    template_arguments: list[dict[str, Any]] | None
    doubts: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        """How many hidden states it reads."""
        return len(self.layers or (0, 0, 0))

    def spec(self, layers: tuple[int, ...]) -> Eagle3Spec:
        """layers: the hidden states that feed it."""
        return Eagle3Spec(
            target_layers=layers,
            target_hidden_size=self.target_hidden_size,
            draft_tokens=self.draft_tokens,
            norm_before_residual=self.norm_before_residual,
            norm_output=self.norm_output,
            feature_norm=self.feature_norm,
            made_for=self.made_for,
            template_arguments=self.template_arguments,
        )


def read_plain(keys: dict[str, Any], name: str) -> Eagle3Keys:
    """Of a config in the plain layout.

    Raises `Pard2Error` for keys of the wrong type, and a layer that is none of ours.
    """
    nested = first_key(keys, name, dict, "eagle_config", default={})
    if nested.get("use_aux_hidden_state") is False:
        raise Pard2Error(f"{name!r} says use_aux_hidden_state = false: it reads one hidden state without `fc`, as no EAGLE-3 draft here does")
    doubts = []
    if keys.get("norm_before_residual") is None:
        doubts.append(
            "`norm_before_residual` in its config.json: false is assumed, as vLLM and SGLang read this layout; vLLM reads speculators' layout as "
            "true. If few of its proposals are accepted, write true there"
        )
    if nested.get(IDS) and not keys.get(IDS):
        doubts.append(
            f"`{IDS}` in its config.json, and has it in `eagle_config` alone: {nested[IDS]} are taken as numbers of hidden states, as vLLM's are; "
            "SGLang counts one lower. If few of its proposals are accepted, write each one higher"
        )
    said = {key: value for key, value in keys.items() if key not in _OF_DRAFT}
    merged = keys | {key: value for key, value in nested.items() if not keys.get(key)}
    return read_keys(merged, said, doubts, name)


def read_keys(keys: dict[str, Any], layer: dict[str, Any], doubts: list[str], name: str) -> Eagle3Keys:
    """keys: of the draft. layer: of its layer, a Llama's or a Qwen 3's. doubts: as in `Eagle3Keys`."""
    if keys.get("quantization_config") is not None or layer.get("quantization_config") is not None:
        raise Pard2Error(f"{name!r} is quantised, which no EAGLE-3 draft here can be; name the unquantised draft")
    ids = keys.get(IDS)
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        raise Pard2Error(f"{name!r}: `{IDS}` must be a list of layer numbers, not {ids!r}")
    count = first_key(keys, name, int, "num_aux_hidden_states", default=len(ids) if ids else 3)
    if count != (len(ids) if ids else 3):
        which = f"lists {len(ids)}" if ids else "is missing, which means three"
        raise Pard2Error(f"{name!r}: num_aux_hidden_states = {count}, but `{IDS}` {which}; correct its config.json")
    joint, each = _flag(keys, name, "norm_before_fc"), _flag(keys, name, "fc_norm", "use_aux_norm")
    if joint and each:
        raise Pard2Error(f"{name!r} says both norm_before_fc and fc_norm; only one of the two can be")
    config = _layer_of(layer, name)
    size = first_key(keys, name, int, "draft_vocab_size")
    if size is not None and size > config.vocab_size:
        raise Pard2Error(f"{name!r}: its draft vocabulary of {size} tokens is larger than the target's of {config.vocab_size}; download it again")
    made_for = {key: first_key(keys, name, str, key, default="") for key in (NAME_KEY, SAMPLES_KEY)}
    return Eagle3Keys(
        config=config,
        layers=tuple(ids) if ids else None,
        target_hidden_size=first_key(keys, name, int, "target_hidden_size", default=config.hidden_size),
        size=size or config.vocab_size,
        draft_tokens=first_key(keys, name, int, "pard2_draft_tokens", default=DEFAULT_DEPTHS),
        norm_before_residual=_flag(keys, name, "norm_before_residual"),
        norm_output=_flag(keys, name, "norm_output"),
        feature_norm="joint" if joint else "each" if each else "none",
        made_for=made_for if made_for[NAME_KEY] else None,
        template_arguments=first_key(keys, name, list, "pard2_chat_template_kwargs"),
        doubts=tuple(doubts),
    )


def _flag(keys: dict[str, Any], name: str, *names: str) -> bool:
    return first_key(keys, name, bool, *names, default=False)


def _layer_of(said: dict[str, Any], name: str) -> PreTrainedConfig:
    """The layer's config."""
    kind = said.get("model_type", "llama")
    if kind not in ("llama", "qwen3"):
        raise Pard2Error(f"{name!r}: the layer of an EAGLE-3 draft is a Llama's or a Qwen 3's here, not {kind!r}")
    kept = {key: value for key, value in said.items() if key not in _OF_FILE | _ROPE_COPIES}
    with load_errors(name):
        config = transformers.AutoConfig.for_model(**kept | {"model_type": kind, "rope_parameters": _rope(said, name)})
        _ = config.to_dict()  # what raises, raises here
        check_sizes(config)
    return config


def _rope(said: dict[str, Any], name: str) -> dict[str, Any]:
    """Rotary frequencies as `rope_parameters` say them, else as the older keys do."""
    rope = first_key(said, name, dict, "rope_parameters", "rope_scaling", default={})
    older = {key: said[key] for key in ("rope_theta", "partial_rotary_factor") if said.get(key) is not None}
    rope = {"rope_theta": 10_000.0, "rope_type": rope.get("type", "default")} | older | rope
    rope.pop("type", None)
    if not isinstance(rope["rope_type"], str) or not all(isinstance(rope[key], int | float) for key in ("rope_theta", *older)):
        raise Pard2Error(f"{name!r}: its rotary frequencies are no numbers of a known kind: {rope}")
    return rope


def plain_keys(draft: Eagle3Draft, dtype: str) -> dict[str, Any]:
    """The config of a draft in the plain layout, every key written out.

    dtype: of its tensors, by torch's name.
    """
    spec = draft.spec
    return layer_keys(draft, dtype) | draft_keys(draft) | {
        "architectures": [ARCHITECTURES[draft.config.model_type]],
        "num_aux_hidden_states": len(spec.target_layers),
        "eagle_config": {
            IDS: [layer - 1 for layer in spec.target_layers],  # as SGLang counts; vLLM reads the key outside first
            "use_aux_hidden_state": True,
            "norm_before_fc": spec.feature_norm == "joint",
        },
    }  # fmt: skip


def draft_keys(draft: Eagle3Draft) -> dict[str, Any]:
    """The keys of a draft that both layouts have, our own among them."""
    spec = draft.spec
    keys: dict[str, Any] = {
        "draft_vocab_size": len(draft.token_ids),
        "target_hidden_size": spec.target_hidden_size,
        "norm_before_residual": spec.norm_before_residual,
        "norm_before_fc": spec.feature_norm == "joint",
        "fc_norm": spec.feature_norm == "each",
        "norm_output": spec.norm_output,
        IDS: list(spec.target_layers),
        "tie_word_embeddings": False,
        "pard2_draft_tokens": spec.draft_tokens,
    }
    if spec.template_arguments is not None:
        keys["pard2_chat_template_kwargs"] = spec.template_arguments
    return keys | (spec.made_for or {})


def layer_keys(draft: Eagle3Draft, dtype: str) -> dict[str, Any]:
    """The config of a draft's layer, its rotary frequencies and window as old and new readers know."""
    config = draft.config
    rope = dict(config.rope_parameters or {})
    keys = config.to_dict() | {"dtype": dtype, "tie_word_embeddings": False, "rope_theta": rope.get("rope_theta")}
    keys["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else {k: v for k, v in rope.items() if k != "rope_theta"}
    if "partial_rotary_factor" in rope:
        keys["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if attention_windows(config)[0] is not None:
        keys["layer_types"] = ["sliding_attention"]  # else speculators would leave the window out
    for unsaid in ("_name_or_path", "architectures"):
        keys.pop(unsaid, None)
    return keys
