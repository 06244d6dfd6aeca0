"""The config.json of an EAGLE-3 draft in the layout of the package speculators: read, and written."""

from typing import Any

from pard2.checkpoints.draft_spec import first_key
from pard2.checkpoints.eagle3_config import Eagle3Keys, draft_keys, layer_keys, read_keys
from pard2.errors import Pard2Error
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.identity import NAME_KEY

MODEL_TYPE = "speculators_model_type"
_ARCHITECTURE = "Eagle3Speculator"  # newer versions write Eagle3DraftModel, and read both
_VERSION = "0.9.0"  # whose format this is


def read_speculators(keys: dict[str, Any], name: str) -> Eagle3Keys:
    """Of a config in speculators' layout, where a missing `norm_before_residual` is false.

    Raises `Pard2Error` for keys of the wrong type, and a layer that is none of ours.
    """
    layer = first_key(keys, name, dict, "transformer_layer_config")
    if layer is None:
        raise Pard2Error(f"{name!r}: its config.json lacks `transformer_layer_config`; download it again")
    said = first_key(keys, name, dict, "speculators_config", default={})
    proposals, verifier = said.get("proposal_methods"), said.get("verifier")
    own = {NAME_KEY: verifier.get("name_or_path")} if isinstance(verifier, dict) else {}
    chosen = [one for one in proposals if isinstance(one, dict)] if isinstance(proposals, list) else []
    # The one that is used by default comes first.
    chosen.sort(key=lambda one: one.get("proposal_type") != said.get("default_proposal_method"))
    if chosen:
        own["pard2_draft_tokens"] = first_key(chosen[0], name, int, "speculative_tokens")
    doubts = []
    if keys.get("norm_before_residual") is None:
        doubts.append("`norm_before_residual` in its config.json: false is assumed, as speculators reads it; vLLM reads true")
    return read_keys(own | keys, {"model_type": "qwen3", **layer}, doubts, name)


def speculators_keys(draft: Eagle3Draft, dtype: str) -> dict[str, Any]:
    """The config of a draft in speculators' layout, every key written out.

    dtype: of its tensors, by torch's name.
    """
    layer = layer_keys(draft, dtype) | {"architectures": [{"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[draft.config.model_type]]}
    target = (draft.spec.made_for or {}).get(NAME_KEY)
    return draft_keys(draft) | {
        "architectures": [_ARCHITECTURE],
        "model_type": "speculators",
        MODEL_TYPE: "eagle3",
        "speculators_version": _VERSION,
        "dtype": dtype,
        "embed_requires_grad": False,
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": draft.spec.draft_tokens,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "verifier": {"name_or_path": target, "architectures": []},
        },
    }
