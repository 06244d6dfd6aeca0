"""Where a draft can run beside here, in vLLM, SGLang and transformers, as far as its config tells (METHOD:
section 7).

Nothing is tried: the answers are what those engines' own code reads.
"""

from collections.abc import Mapping
from typing import Any

from pard2.checkpoints.draft_spec import DraftSpec
from pard2.checkpoints.eagle3_config import ARCHITECTURES, IDS, Eagle3Keys
from pard2.checkpoints.speculators import MODEL_TYPE
from pard2.runtime.windows import attention_windows

_HERE = {"pard2": "yes"}
_OF_VLLM = {"llama": (ARCHITECTURES["llama"], "Eagle3LlamaForCausalLM"), "qwen3": (ARCHITECTURES["qwen3"],)}


def lm_runs_in(keys: Mapping[str, Any], spec: DraftSpec | None, whole: bool) -> dict[str, str]:
    """Of a draft that is a language model: for each engine "yes: how" or "no: why".

    keys: of its config.json. whole: its file holds all weights.
    """
    missing = "" if whole else "weights are missing"
    if spec is not None and spec.shared_vocabulary:
        missing = "embedding and head are the target's; `pard2 export --to vllm` writes them too"
    if missing:
        return _HERE | dict.fromkeys(("vLLM", "SGLang", "transformers"), f"no: {missing}")
    if spec is None:
        return _HERE | {"vLLM": "yes: as a draft model", "SGLang": "yes: as a standalone draft", "transformers": "yes: assisted decoding"}
    as_pard = "as PARD" + (", without the target's features" if spec.target_layers else "")
    return _HERE | {
        "vLLM": f"yes: {as_pard} (parallel_drafting)"
        if keys.get("spd_type") in ("pard", "pard2")
        else "no: `spd_type` in its config.json is missing",
        "SGLang": "no: it does not read PARD",
        "transformers": "yes: assisted decoding, one token a pass",
    }


def eagle3_runs_in(keys: Mapping[str, Any], said: Eagle3Keys, whole: bool) -> dict[str, str]:
    """Of an EAGLE-3 draft: for each engine "yes" or "no: why".

    keys: of its config.json, and what they say. whole: its files hold all weights.
    """
    broken = [] if whole else ["its files are broken or incomplete"]
    in_vllm, in_sglang = broken + _against_vllm(keys, said), broken + _against_sglang(keys, said)
    return _HERE | {
        "vLLM": f"no: {'; '.join(in_vllm)}" if in_vllm else "yes",
        "SGLang": f"no: {'; '.join(in_sglang)}" if in_sglang else "yes",
        "transformers": "no: it is no language model of its own",
    }


def _against_vllm(keys: Mapping[str, Any], said: Eagle3Keys) -> list[str]:
    reasons = []
    kind = said.config.model_type
    if MODEL_TYPE in keys and keys.get("norm_before_residual") is None:
        reasons.append("`norm_before_residual` is missing, which it takes for true; write false")
    if MODEL_TYPE not in keys and not set(keys.get("architectures") or ()) & set(_OF_VLLM[kind]):
        reasons.append(f"for a layer of this kind ({kind}) `architectures` must be {_OF_VLLM[kind][0]}")
    if getattr(said.config, "bias", False):
        reasons.append("its `fc` has no bias")
    return reasons


def _against_sglang(keys: Mapping[str, Any], said: Eagle3Keys) -> list[str]:
    if MODEL_TYPE in keys:
        return ["it reads the plain layout alone (`pard2 export --to sglang`)"]
    reasons = []
    if said.config.model_type != "llama" or ARCHITECTURES["llama"] not in (keys.get("architectures") or ()):
        reasons.append(f"it reads {ARCHITECTURES['llama']} with a Llama's layer alone")
    if said.norm_before_residual:
        reasons.append("its residual is always the feature as it is (norm_before_residual false)")
    if said.config.attention_bias:
        reasons.append("its queries, keys and values have no biases")
    if attention_windows(said.config)[0] is not None:
        reasons.append("its window is an option of the server")
    nested = (keys.get("eagle_config") or {}).get(IDS)
    wanted = [layer - 1 for layer in said.layers or ()]
    if (nested or []) != wanted:
        reasons.append(f"it counts `eagle_config`'s layer ids one lower: write {wanted} there")
    return reasons
