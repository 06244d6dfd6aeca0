r"""Proposals as trees against proposals as chains: acceptance length and speed, from the
same draft on the same prompts.

    python benchmarks/trees.py \
        --suites eval_gsm8k.jsonl eval_humaneval.jsonl eval_math500.jsonl eval_mt_bench.jsonl \
        --prompts 20 --json docs/results/trees.json

Greedy, one sequence at a time, always with as many proposals as the draft was trained for; a tree holds its
best nodes from the same distributions. The suites take turns prompt by prompt, and all arms decode a prompt
before the next one, every other prompt the other way round. Tokens/s are of cycles alone. Ratios are over
chains, of sums; intervals are 95 % bootstrap over prompts. With --minutes the run ends with the prompt during
which the time is up; by default it takes about eleven minutes on two cores. All arms must say the same: in
float32 a difference ends the script with exit code 1 after the results are written; in half precision, where
near-ties may fall otherwise, it is counted.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.progress import track

from common import suite_prompts
from pard2 import Completion, Engine, SamplingParams
from pard2.bench.result_file import write_result
from pard2.checkpoints.embedded import embedded_draft
from pard2.checkpoints.loading import load_target, parse_dtype
from pard2.checkpoints.read import load_draft
from pard2.environment import meta
from pard2.intervals import bootstrap
from pard2.models.draft import Draft
from pard2.models.target import Target

CHAIN, PLAIN = "chain", "plain"
ALL = "all suites"

Done = dict[str, list[Completion]]  # of one suite, by arm; the prompts' order is the same


def new_engines(target: Target, draft: Draft, method: str, nodes: Sequence[int], plain: bool, cache_tokens: int) -> dict[str, Engine]:
    """Chains first, then a tree of each number of nodes."""
    engines = {CHAIN: Engine(target, draft, method, "full", max_batch=1, cache_tokens=cache_tokens)}
    engines |= {f"tree {n}": Engine(target, draft, method, "full", max_batch=1, cache_tokens=cache_tokens, tree=n) for n in nodes}
    return engines | ({PLAIN: Engine(target, None, "ar", max_batch=1, cache_tokens=cache_tokens)} if plain else {})


def decode(engines: Mapping[str, Engine], suites: Mapping[str, list[list[int]]], new_tokens: int, seconds: float) -> dict[str, Done]:
    """What each arm said to each prompt, until the time is up."""
    done: dict[str, Done] = {suite: {arm: [] for arm in engines} for suite in suites}
    turns = [(suite, prompt) for turn in zip_longest(*suites.values()) for suite, prompt in zip(suites, turn, strict=True) if prompt is not None]
    params, warm_up = SamplingParams(max_tokens=new_tokens), SamplingParams(max_tokens=min(8, new_tokens), ignore_eos=True)
    for engine in engines.values():
        list(engine.generate(turns[0][1:], warm_up))
    started = time.perf_counter()
    for number, (suite, prompt) in enumerate(track(turns, description="prompts")):
        if time.perf_counter() - started > seconds:
            break
        for arm in list(engines)[:: -1 if number % 2 else 1]:
            (completion,) = engines[arm].generate([prompt], params)
            done[suite][arm].append(completion)
    return done


def summarise(suite: str, done: Done) -> list[dict[str, Any]]:
    """A result for each arm."""
    return [_result(suite, arm, completions, done[CHAIN]) for arm, completions in done.items() if completions]


def _result(suite: str, arm: str, completions: list[Completion], chains: list[Completion]) -> dict[str, Any]:
    ours, theirs = (_counts(some) for some in (completions, chains))
    pairs = [(*a, *b) for a, b in zip(ours, theirs, strict=True)]
    accepted, cycles, seconds, draft, verify = (sum(column) for column in zip(*ours, strict=True))
    acceptance, other = 1 + accepted / cycles, 1 + sum(one[0] for one in theirs) / sum(one[1] for one in theirs)
    speed, other_speed = (accepted + cycles) / seconds, sum(one[0] + one[1] for one in theirs) / sum(one[2] for one in theirs)
    return {
        "suite": suite,
        "proposals": arm,
        "prompts": len(completions),
        "tokens": sum(len(one.token_ids) for one in completions),
        "cycles": cycles,
        "acceptance_length": acceptance,
        "acceptance_length_interval": bootstrap(ours, lambda s: 1 + s[..., 0] / s[..., 1]),
        "acceptance_length_over_chain": acceptance / other,
        "acceptance_length_over_chain_interval": bootstrap(pairs, lambda s: (1 + s[..., 0] / s[..., 1]) / (1 + s[..., 5] / s[..., 6])),
        "tokens_per_second": speed,
        "speed_over_chain": speed / other_speed,
        "speed_over_chain_interval": bootstrap(pairs, lambda s: (s[..., 0] + s[..., 1]) / s[..., 2] / ((s[..., 5] + s[..., 6]) / s[..., 7])),
        "draft_milliseconds": 1000 * draft / cycles,
        "verify_milliseconds": 1000 * verify / cycles,
        "equal_outputs": sum(a.token_ids == b.token_ids for a, b in zip(completions, chains, strict=True)),
    }


def _counts(completions: list[Completion]) -> list[tuple[float, ...]]:
    """Of each: accepted, cycles, seconds of cycles, of them the draft's and the target's."""
    return [(s.accepted, s.cycles, s.decode_seconds, s.draft_seconds, s.verify_seconds) for s in (one.stats for one in completions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=None, help="by default the embedded one")
    parser.add_argument("--method", default="pard2-td")
    parser.add_argument("--nodes", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--plain", action="store_true", help="plain decoding as another arm")
    parser.add_argument("--prompts", type=int, default=20, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=11.5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()

    target = load_target(args.target, args.dtype, args.device)
    draft = load_draft(args.draft or embedded_draft(), target, parse_dtype(args.dtype), args.method == "pard2-td")
    suites = suite_prompts(args.suites, target, args.prompts)
    longest = max(len(prompt) for prompts in suites.values() for prompt in prompts)
    engines = new_engines(target, draft, args.method, args.nodes, args.plain, longest + args.new_tokens + max(args.nodes))
    done = decode(engines, suites, args.new_tokens, 60 * args.minutes)
    together = {arm: [completion for one in done.values() for completion in one[arm]] for arm in engines}
    results = [result for suite, some in (done | {ALL: together}).items() for result in summarise(suite, some)]
    write_result(args.json, about, results)
    print_results(results)
    differing = sum(result["prompts"] - result["equal_outputs"] for result in results if result["suite"] == ALL)
    if differing:
        print(f"{differing} answers differ from those of chains")
        raise SystemExit(1 if args.dtype == "float32" else 0)


def print_results(results: list[dict[str, Any]]) -> None:
    print("| suite | proposals | AL (95 %) | over chain | tokens/s | over chain | draft + verify, ms | same text |\n" + "| --- " * 8 + "|")
    for r in results:
        cells = [r["suite"], r["proposals"], _with_interval(r, "acceptance_length"), _with_interval(r, "acceptance_length_over_chain")]
        cells += [f"{r['tokens_per_second']:.1f}", _with_interval(r, "speed_over_chain")]
        cells += [f"{r['draft_milliseconds']:.1f} + {r['verify_milliseconds']:.1f}", f"{r['equal_outputs']} of {r['prompts']}"]
        print(f"| {' | '.join(cells)} |")


def _with_interval(result: dict[str, Any], key: str) -> str:
    interval = result[f"{key}_interval"]
    return f"{result[key]:.2f}" + ("" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})")


if __name__ == "__main__":
    main()
