"""Decodes prompts with vLLM and tells what its counters say. A script for the interpreter that has vLLM; it
need not have pard2:

    python vllm_probe.py REQUEST.json ANSWER.json

REQUEST: `{"llm": {..}, "prompts": [[..], ..], "max_tokens": N}`, `llm` being arguments of `vllm.LLM`.
ANSWER: `{"token_ids", "seconds", "drafts", "proposed", "accepted", "accepted_by_position"}`.
"""

import json
import sys
import time
from pathlib import Path


def main(request: Path, answer: Path) -> None:
    from vllm import LLM, SamplingParams

    asked = json.loads(request.read_text())
    llm = LLM(**asked["llm"], disable_log_stats=False)
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)  # warm
    before = counters(llm)
    started = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=asked["max_tokens"]), use_tqdm=False)
    seconds = time.perf_counter() - started
    after = counters(llm)
    found = {
        "token_ids": [list(output.outputs[0].token_ids) for output in outputs],
        "seconds": seconds,
        **{name: after[name] - before.get(name, 0) for name in ("drafts", "proposed", "accepted") if name in after},
    }
    if "by_position" in after:
        earlier = before.get("by_position") or [0] * len(after["by_position"])
        found["accepted_by_position"] = [now - then for now, then in zip(after["by_position"], earlier, strict=True)]
    answer.write_text(json.dumps(found))


def counters(llm: object) -> dict:
    """Of speculative decoding so far; empty without it."""
    names = {
        "vllm:spec_decode_num_drafts": "drafts",
        "vllm:spec_decode_num_draft_tokens": "proposed",
        "vllm:spec_decode_num_accepted_tokens": "accepted",
        "vllm:spec_decode_num_accepted_tokens_per_pos": "by_position",
    }
    found = {}
    for metric in llm.get_metrics():  # type: ignore[attr-defined]
        if metric.name in names:
            found[names[metric.name]] = list(metric.values) if hasattr(metric, "values") else metric.value
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
