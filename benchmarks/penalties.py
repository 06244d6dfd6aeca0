r"""Acceptance length under a request's penalties and biases.

    python benchmarks/penalties.py --suites eval_gsm8k.jsonl eval_mt_bench.jsonl --prompts 10 \
        --json docs/results/penalties.json

The embedded pair, target-dependent, K = 8, one prompt at a time, greedy; every setting answers every prompt.
The same command with another tree in PYTHONPATH tells what that one accepts. The texts must be those of plain
decoding under the same penalties: in half precision, where near-ties may fall otherwise, the share is told.
"""

import argparse
from pathlib import Path

from rich.progress import track

from common import suite_prompts
from pard2 import Engine, SamplingParams
from pard2.bench.result_file import write_result
from pard2.checkpoints.embedded import embedded_draft
from pard2.environment import meta
from pard2.intervals import bootstrap

SETTINGS = {
    "none": {},
    "repetition_penalty 1.3": {"repetition_penalty": 1.3},
    "presence_penalty 1.2": {"presence_penalty": 1.2},
    "frequency_penalty 0.5": {"frequency_penalty": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=10, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tree", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()
    drafting = Engine.from_pretrained(
        "smollm2", embedded_draft(), "pard2-td", args.dtype, draft_tokens=8, max_batch=1, **({"tree": args.tree} if args.tree else {})
    )
    plain = Engine(drafting.target, None, "ar", max_batch=1)
    prompts = [prompt for suite in suite_prompts(args.suites, drafting.target, args.prompts).values() for prompt in suite]
    found = {name: [] for name in SETTINGS}
    for prompt in track(prompts, description="prompts"):
        for name, setting in SETTINGS.items():
            params = SamplingParams(max_tokens=args.new_tokens, **setting)
            (one,), (same,) = (engine.generate([prompt], params) for engine in (drafting, plain))
            found[name].append((len(one.token_ids) - 1, one.stats.cycles, one.token_ids == same.token_ids))  # the first token has no cycle
    results = []
    for name, answers in found.items():
        pairs = [(tokens, cycles) for tokens, cycles, _ in answers]
        length = sum(tokens for tokens, _ in pairs) / sum(cycles for _, cycles in pairs)
        interval = bootstrap(pairs, lambda sums: sums[..., 0] / sums[..., 1])
        same = sum(equal for *_, equal in answers)
        results.append({"setting": name, "acceptance_length": length, "interval": interval, "same_text": same, "prompts": len(answers)})
        print(f"{name}: AL {length:.2f} ({interval[0]:.2f} to {interval[1]:.2f}), same text {same} of {len(answers)}")
    write_result(args.json, about, results, tree=args.tree)


if __name__ == "__main__":
    main()
