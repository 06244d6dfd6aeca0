"""How an engine is started with an exported draft: commands to copy."""

import json
import shlex
from collections.abc import Iterator

from pard2.export.engine_form import EngineForm
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft
from pard2.models.draft_kind import DraftKind
from pard2.models.eagle3 import Eagle3Draft

_ORDINARY_TOKENS = 5  # a draft that is an ordinary LM has no K of its own


def instructions(form: EngineForm, directory: str, target: str) -> list[str]:
    """Lines for a shell and for Python; for a PARD-2 draft in vLLM first those with the target's features.

    directory: of the exported draft. target: as that engine names it.
    """
    return list(_OF[form.engine](form.draft, directory, target))


def speculative_config(draft: AnyDraft, directory: str, features: bool = False) -> dict[str, object]:
    """What vLLM takes as `speculative_config` (0.32; METHOD: section 7).

    features: of the target, for a PARD-2 draft (TD), which takes pard2 beside vLLM.
    """
    common: dict[str, object] = {"model": directory, "num_speculative_tokens": draft_tokens(draft)}
    if features:
        return {"method": "eagle3", **common, "parallel_drafting": True}
    if isinstance(draft, Eagle3Draft):
        return {"method": "eagle3", **common}
    return {"method": "draft_model", **common, **({"parallel_drafting": True} if draft.spec is not None else {})}


def draft_tokens(draft: AnyDraft) -> int:
    """K: what it was trained for."""
    return _ORDINARY_TOKENS if draft.spec is None else draft.spec.draft_tokens


def _vllm(draft: AnyDraft, directory: str, target: str) -> Iterator[str]:
    runner = "VLLM_USE_V2_MODEL_RUNNER=0 " if isinstance(draft, Draft) and draft.spec is not None else ""  # the newer one knows no PARD
    for features in (True, False) if draft.kind is DraftKind.PROJECTED else (False,):
        config = speculative_config(draft, directory, features)
        yield f"{runner}vllm serve {shlex.quote(target)} --speculative-config {shlex.quote(json.dumps(config))}"
        yield f"LLM(model={target!r}, speculative_config={config!r})"


def _speculators(draft: AnyDraft, directory: str, target: str) -> Iterator[str]:
    yield f"vllm serve {shlex.quote(directory)}"  # it names its target itself
    yield from _vllm(draft, directory, target)


def _sglang(draft: AnyDraft, directory: str, target: str) -> Iterator[str]:
    algorithm, steps = ("EAGLE3" if isinstance(draft, Eagle3Draft) else "STANDALONE"), draft_tokens(draft)
    yield (
        f"python -m sglang.launch_server --model-path {shlex.quote(target)} --speculative-algorithm {algorithm} "
        f"--speculative-draft-model-path {shlex.quote(directory)} --speculative-num-steps {steps} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {steps + 1}"
    )


def _tensorrt_llm(draft: AnyDraft, directory: str, target: str) -> Iterator[str]:
    common = f"max_draft_len={draft_tokens(draft)}, speculative_model={directory!r}"
    if isinstance(draft, Eagle3Draft):
        config = f"Eagle3DecodingConfig({common})"
    elif draft.spec is not None:
        config = f"PARDDecodingConfig({common}, mask_token_id={draft.spec.mask_token})"
    else:
        config = f"DraftTargetDecodingConfig({common})"
    yield f"LLM(model={target!r}, speculative_config={config})"


_OF = {"vllm": _vllm, "sglang": _sglang, "tensorrt-llm": _tensorrt_llm, "speculators": _speculators}
