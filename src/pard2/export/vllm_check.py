"""An exported draft in stock vLLM: does it say what vLLM says without it, and is as much accepted as here?"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.engine.engine import Engine
from pard2.engine.methods import methods_for
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import Stats
from pard2.errors import Pard2Error
from pard2.export import vllm_probe
from pard2.models.draft_kind import DraftKind
from pard2.models.target import Target
from pard2.verify.greedy import NEAR_TIE, first_difference, gaps_to_first_choice

TESTED = ("0.32.",)  # versions of vLLM whose answers were seen
_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class VllmCheck:
    """What was seen.

    equal: prompts whose text was that of vLLM's own plain decoding, of `prompts`.
    near_ties: prompts that differ first where two tokens are as good as each other (`NEAR_TIE` logits).
    acceptance_length, ours: tokens that a cycle emits for a sequence, by vLLM's counters and in pard2.
    speedup: of vLLM's whole run over its own plain one.
    """

    version: str
    draft_tokens: int
    prompts: int
    equal: int
    near_ties: int
    acceptance_length: float
    ours: float
    speedup: float

    @property
    def passed(self) -> bool:
        alike = abs(self.acceptance_length - self.ours) <= _TOLERANCE * self.ours
        return alike and self.equal + self.near_ties == self.prompts


def check_in_vllm(config: dict[str, Any], target: str, prompts: Sequence[list[int]], max_new_tokens: int, python: str = sys.executable) -> VllmCheck:
    """Decode prompts in float32 by vLLM with and without the draft, and by pard2 with it.

    config: `speculative_config`. python: the interpreter that has vLLM.

    Raises `Pard2Error` where vLLM is missing, is of a version that nobody tried, or ends before its answer.
    """
    loaded = load_target(target, "float32", "cpu", "plain")
    with tempfile.TemporaryDirectory(prefix="pard2-") as place:
        directory = Path(target)
        if not (directory / "config.json").is_file():  # the embedded one and other GGUF files: vLLM gets what they hold
            directory = Path(place) / "target"
            loaded.model.save_pretrained(directory)
            if loaded.tokenizer is not None:
                loaded.tokenizer.save_pretrained(directory)
        room = max(map(len, prompts)) + max_new_tokens + int(config["num_speculative_tokens"]) + 1
        common = {"model": str(directory), "dtype": "float32", "max_model_len": room, "enforce_eager": True, "seed": 0}
        plain = run_vllm(Path(place), common, prompts, max_new_tokens, python)
        drafted = run_vllm(Path(place), common | {"speculative_config": config}, prompts, max_new_tokens, python)
    stats = _ours(loaded, config, prompts, max_new_tokens)
    differing = [
        (i, at) for i, (a, b) in enumerate(zip(drafted["token_ids"], plain["token_ids"], strict=True)) if (at := first_difference(a, b)) is not None
    ]
    tied = sum(_is_tie(loaded, prompts[i], plain["token_ids"][i], drafted["token_ids"][i], at) for i, at in differing)
    return VllmCheck(
        version=plain["version"],
        draft_tokens=int(config["num_speculative_tokens"]),
        prompts=len(prompts),
        equal=len(prompts) - len(differing),
        near_ties=tied,
        acceptance_length=1 + drafted["accepted"] / max(1, drafted["drafts"]),
        ours=stats.acceptance_length or 1.0,
        speedup=plain["seconds"] / drafted["seconds"],
    )


def run_vllm(place: Path, llm: dict[str, Any], prompts: Sequence[list[int]], max_new_tokens: int, python: str) -> dict[str, Any]:
    """The answer of `vllm_probe`, in a process of its own: engines of one process would share its memory."""
    request, answer = place / "request.json", place / "answer.json"
    request.write_text(json.dumps({"llm": llm, "prompts": list(prompts), "max_tokens": max_new_tokens}))
    answer.unlink(missing_ok=True)
    environment = os.environ | {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    try:
        ended = subprocess.run([python, vllm_probe.__file__, request, answer], env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Pard2Error(f"`python` {python!r}: {error.strerror}; name an interpreter that has vLLM") from None
    if "No module named 'vllm'" in ended.stderr:
        raise Pard2Error(f"{python} has no vLLM; install it there, or name an interpreter that has it with `python`")
    if not answer.is_file():
        last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), f"exit code {ended.returncode}")
        raise Pard2Error(f"vLLM ended without an answer: {last.strip()}")
    found = json.loads(answer.read_text())
    if not found["version"].startswith(TESTED):
        raise Pard2Error(f"vLLM {found['version']} was never tried; this check knows {', '.join(version + 'x' for version in TESTED)}")
    return found


def _ours(target: Target, config: dict[str, Any], prompts: Sequence[list[int]], max_new_tokens: int) -> Stats:
    """Of pard2, without the target's features where the draft could have them: as vLLM runs it."""
    draft = load_draft(str(config["model"]), target, torch.float32, target_dependent=False, weight_format="plain")
    method = "pard2-ti" if draft.kind >= DraftKind.MASKED and draft.kind is not DraftKind.EAGLE3 else methods_for(draft.kind)[0]
    engine = Engine(target, draft, method, int(config["num_speculative_tokens"]), max_batch=8)
    params = SamplingParams(max_tokens=max_new_tokens)
    return sum((one.stats for one in engine.generate(list(prompts), params)), Stats())


def _is_tie(target: Target, prompt: list[int], plain: list[int], drafted: list[int], at: int) -> bool:
    """Whether both tokens at the first difference are as good as the target's first choice."""
    ids = torch.tensor([prompt + plain[:at]])
    with torch.inference_mode():
        logits = target.model(ids).logits[0, -1:].float()
    both = [tokens[at] for tokens in (plain, drafted) if at < len(tokens)]
    return len(both) == 2 and max(gaps_to_first_choice(logits.expand(2, -1), torch.tensor(both))) <= NEAR_TIE
