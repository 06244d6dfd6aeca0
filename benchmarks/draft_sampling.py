r"""When requests sample: proposals taken greedily against proposals drawn from the draft, judged
token by token or as blocks.

    python benchmarks/draft_sampling.py --suites eval_gsm8k.jsonl eval_humaneval.jsonl --prompts 8 \
        --json docs/results/draft_sampling.json

All rules decode a prompt in turn before the next one. Texts differ, because drawn proposals use up other
random numbers, so every rule answers every prompt with several seeds; all are lossless.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from common import in_turn, suite_prompts
from pard2.bench.result_file import write_result
from pard2.checkpoints.embedded import embedded_draft
from pard2.checkpoints.loading import load_target, parse_dtype
from pard2.checkpoints.read import load_draft
from pard2.engine.engine import Engine
from pard2.engine.request import Completion
from pard2.engine.sampling import SamplingParams
from pard2.environment import meta
from pard2.intervals import bootstrap

RULES = {"greedy": ("greedy", "token"), "sampled, token": ("sampled", "token"), "sampled, block": ("sampled", "block")}
SETTINGS = {"temperature 1": {"temperature": 1.0}, "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=None, help="by default the embedded one")
    parser.add_argument("--method", default="pard2-td")
    parser.add_argument("--draft-tokens", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=2, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()

    target = load_target(args.target, args.dtype, args.device)
    draft = load_draft(args.draft or embedded_draft(), target, parse_dtype(args.dtype), args.method == "pard2-td")
    engines = {
        name: Engine(target, draft, args.method, args.draft_tokens, max_batch=1, draft_sampling=sampling, verification=rule)
        for name, (sampling, rule) in RULES.items()
    }
    prompts = [prompt for found in suite_prompts(args.suites, target, args.prompts).values() for prompt in found]
    for engine in engines.values():
        list(engine.generate(prompts[:1], SamplingParams(max_tokens=16)))
    results = []
    for setting, values in SETTINGS.items():
        done: dict[str, list[Completion]] = {name: [] for name in RULES}
        for prompt in track(prompts, description=setting, console=Console(stderr=True)):
            for seed in range(args.seeds):
                params = SamplingParams(max_tokens=args.new_tokens, seed=seed, **values)
                work = {name: lambda engine=engine: engine.generate([prompt], params)[0] for name, engine in engines.items()}  # noqa: B023
                for name, completions in in_turn(work, 1).items():
                    done[name] += completions
        results += [describe(setting, name, completions, done["greedy"], args) for name, completions in done.items()]
        write_result(args.json, about, results)
    show(results)


def describe(setting: str, name: str, completions: list[Completion], greedy: list[Completion], args: argparse.Namespace) -> dict:
    rows = [(c.stats.accepted, c.stats.cycles, c.stats.decode_seconds) for c in completions]
    base = [(c.stats.accepted, c.stats.cycles, c.stats.decode_seconds) for c in greedy]
    speed = [(sum(row[i] for row in rows), sum(row[i] for row in base)) for i in range(3)]
    return {
        "setting": setting,
        "proposals": name,
        "method": args.method,
        "draft_tokens": args.draft_tokens,
        "answers": len(completions),
        "acceptance_length": 1 + speed[0][0] / speed[1][0],
        "acceptance_length_interval": bootstrap([row[:2] for row in rows], lambda s: 1 + s[..., 0] / s[..., 1]),
        "tokens_per_second": (speed[0][0] + speed[1][0]) / speed[2][0],
        "speed_over_greedy": (speed[0][0] + speed[1][0]) / speed[2][0] / ((speed[0][1] + speed[1][1]) / speed[2][1]),
    }


def show(results: list[dict]) -> None:
    table = Table("setting", "proposals", "AL", "95 %", "tokens/s", "over greedy")
    for one in results:
        interval = one["acceptance_length_interval"]
        table.add_row(
            one["setting"], one["proposals"], f"{one['acceptance_length']:.2f}", "" if interval is None else "{:.2f} to {:.2f}".format(*interval),
            f"{one['tokens_per_second']:.1f}", f"{one['speed_over_greedy']:.2f}x",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
