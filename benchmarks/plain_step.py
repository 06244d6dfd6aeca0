r"""Plain decoding against transformers' own `generate`, and against the time that the matrices
take when nothing else is done.

    python benchmarks/plain_step.py --suites eval_gsm8k.jsonl --prompts 4 --rounds 3 \
        --json docs/results/plain_step.json

Both libraries get the same prompts and make the same number of tokens, one sequence at a time; each has
a copy of the model of its own, in the dtype named. Seconds are of whole calls; a step is what a call
takes longer for each further token. The floor is the very matrix products of our pass over one row, run
back to back: the weights read once, and nothing between. All take turns, round by round; medians, and
medians of the ratios within a round.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.progress import track

from common import in_turn, read_bandwidth, seconds, suite_prompts
from pard2.bench.result_file import write_result
from pard2.checkpoints.loading import load_causal_lm, load_target, parse_dtype
from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.environment import meta
from pard2.kernels.packed import PackedLinear
from pard2.models.target import Target
from pard2.runtime.llama_decoder import LlamaDecoder

FLOOR_STEPS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--prompts", type=int, default=2, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()

    target = load_target(args.target, args.dtype, args.device)
    prompts = [prompt for suite in suite_prompts(args.suites, target, args.prompts).values() for prompt in suite]
    engine = Engine(target, None, "ar", max_batch=1, cache_tokens=max(map(len, prompts)) + args.new_tokens)
    theirs = load_causal_lm(args.target, parse_dtype(args.dtype), target.device)
    theirs.generation_config.eos_token_id = None  # as many tokens as asked for

    step, size = matrices(target)
    results = []
    for number, prompt in enumerate(track(prompts, description="prompts")):
        ids = torch.tensor([prompt], device=target.device)

        def ours(tokens: int, prompt: list[int] = prompt) -> list[int]:
            return engine.generate([prompt], SamplingParams(max_tokens=tokens, ignore_eos=True))[0].token_ids

        def transformers(tokens: int, ids: torch.Tensor = ids) -> list[int]:
            mask = torch.ones_like(ids)
            output = theirs.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, use_cache=True, pad_token_id=0)
            return output[0, ids.shape[1] :].tolist()

        work: dict[str, Callable[[], float]] = {"floor": lambda: seconds(step, target.device, FLOOR_STEPS)}
        for name, call in (("ours", ours), ("transformers", transformers)):
            work[name, "short"] = lambda call=call: seconds(lambda: call(1), target.device)
            work[name, "long"] = lambda call=call: seconds(lambda: call(args.new_tokens), target.device)
        if number == 0:
            in_turn(work, 1)  # warm-up
        results.append(one_result(len(prompt), args.new_tokens, in_turn(work, args.rounds), ours(args.new_tokens) == transformers(args.new_tokens)))
    summary = {key: median(result[key] for result in results) for key in results[0] if key not in ("prompt_tokens", "new_tokens", "equal")}
    summary["equal"] = sum(result["equal"] for result in results)
    floor = summary["floor_milliseconds"] / 1000
    floor_about = {
        "weight_bytes": size,
        "kernel_bytes_per_second": round(size / floor),
        "plain_read_bytes_per_second": round(read_bandwidth(target.device)),
    }
    write_result(args.json, about, results, summary=summary, floor=floor_about)
    for key, value in (summary | floor_about).items():
        print(f"{key:<32} {value:,.3f}" if isinstance(value, float) else f"{key:<32} {value:,}")


def matrices(target: Target) -> tuple[Callable[[], None], int]:
    """All matrix products of a pass over one row, and how many bytes of weights they read."""
    if not isinstance(target.decoder, LlamaDecoder):
        raise SystemExit(f"{target.name} runs through transformers' modules; its matrices cannot be run alone")
    linears = target.decoder.linears()
    rows = {inputs: torch.randn(1, inputs, dtype=target.decoder_dtype, device=target.device) for _, inputs, _ in linears}
    packed = any(isinstance(module, PackedLinear) for module in target.model.modules())
    size = sum(inputs * outputs for _, inputs, outputs in linears) * (2 if packed else target.decoder_dtype.itemsize)

    @torch.inference_mode()
    def step() -> None:
        for product, inputs, _ in linears:
            product(rows[inputs])

    return step, size


def one_result(prompt_tokens: int, new_tokens: int, took: dict, equal: bool) -> dict:
    """Of one prompt. took: seconds, round by round."""
    steps = {
        name: [(long - short) / (new_tokens - 1) for short, long in zip(took[name, "short"], took[name, "long"], strict=True)]
        for name in ("ours", "transformers")
    }
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "equal": equal,
        "tokens_per_second": new_tokens / median(took["ours", "long"]),
        "transformers_tokens_per_second": new_tokens / median(took["transformers", "long"]),
        "over_transformers": ratio(took["transformers", "long"], took["ours", "long"]),
        "step_milliseconds": 1000 * median(steps["ours"]),
        "transformers_step_milliseconds": 1000 * median(steps["transformers"]),
        "step_over_transformers": ratio(steps["transformers"], steps["ours"]),
        "floor_milliseconds": 1000 * median(took["floor"]),
        "step_over_floor": ratio(steps["ours"], took["floor"]),
    }


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios within a round."""
    return median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()
