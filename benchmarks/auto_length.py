r"""`--draft-tokens auto` against every fixed K, 0 (plain decoding) included: per suite, and on a mixed load.

    python benchmarks/auto_length.py --suites eval_gsm8k.jsonl eval_humaneval.jsonl --prompts 20 \
        --json docs/results/auto_length.json

The mixed load alternates the prompts of the suites, so that sequences of different acceptance share a batch.
Runs through `pard2.bench`: the same results, turn by turn, and resumable; `auto` holds the ratio of auto's
tokens/s to that of the best fixed K, which is chosen with hindsight from the same measurements.
"""

import argparse
import json
from itertools import chain
from pathlib import Path

from rich.console import Console

from pard2.bench.measurement import Measurement
from pard2.bench.plan import Configuration, Plan, configurations
from pard2.bench.result_file import ResultFile, write_result
from pard2.bench.runner import Runner, run
from pard2.bench.suites import Suite, read_suites
from pard2.bench.table import results_table
from pard2.checkpoints.embedded import embedded_draft
from pard2.checkpoints.loading import load_target, parse_dtype
from pard2.checkpoints.read import load_draft
from pard2.engine.statistics import Totals
from pard2.intervals import bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=None, help="by default the embedded one")
    parser.add_argument("--method", default="pard2-td")
    parser.add_argument("--prompts", type=int, default=2, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--fixed", nargs="+", type=int, default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()

    suites = read_suites(args.suites, args.prompts)
    target = load_target(args.target, args.dtype, args.device)
    draft_name = args.draft or embedded_draft()
    draft = load_draft(draft_name, target, parse_dtype(args.dtype), args.method == "pard2-td")
    plan = Plan(
        target=args.target,
        draft=draft_name,
        dtype=args.dtype,
        device=target.device.type,
        suites=(*suites, *([mixed(suites)] if len(suites) > 1 else [])),
        configurations=configurations([args.method], args.batch_sizes, ["auto", *args.fixed], [0.0]),
        max_new_tokens=args.new_tokens,
        repeats=args.repeats,
    )
    file = ResultFile(args.json, plan)
    run(Runner(plan, target, {None: draft}), file, Console(stderr=True))
    held = json.loads(args.json.read_text())
    auto = [compare(file.measurements, suite.name, size) for suite in plan.suites for size in args.batch_sizes]
    write_result(args.json, held["meta"], held["results"], auto=auto, plan=held["plan"], chunks=held["chunks"])
    Console(width=150).print(results_table(held["results"], 150))
    for one in auto:
        interval = "" if one["interval"] is None else "{:.3f} to {:.3f}".format(*one["interval"])
        print(f"{one['suite']}, batch {one['batch_size']}: auto is {one['ratio']:.3f} of the best fixed K, {one['best_fixed']} {interval}")


def mixed(suites: list[Suite]) -> Suite:
    """The prompts of all suites in turn, as many of each as the shortest has."""
    ids = chain.from_iterable(zip(*(suite.ids for suite in suites), strict=False))
    prompts = chain.from_iterable(zip(*(suite.prompts for suite in suites), strict=False))
    return Suite("mixed", tuple(ids), tuple(prompts))


def compare(measurements: list[Measurement], suite: str, batch_size: int) -> dict:
    """Auto's tokens/s over the best fixed K's, with an interval over chunks."""
    found: dict[Configuration, list[Totals]] = {}
    for one in measurements:
        if one.chunk.suite == suite and one.chunk.batch_size == batch_size:
            found.setdefault(one.configuration, []).append(one.totals)
    speeds = {configuration: sum(totals, Totals()).tokens_per_second for configuration, totals in found.items()}
    auto = next(configuration for configuration in found if configuration.draft_tokens == "auto")
    best = max((configuration for configuration in found if configuration is not auto), key=lambda configuration: speeds[configuration])
    pairs = [(a.tokens, a.decode_seconds, b.tokens, b.decode_seconds) for a, b in zip(found[auto], found[best], strict=True)]
    return {
        "suite": suite,
        "batch_size": batch_size,
        "best_fixed": best.draft_tokens,
        "ratio": speeds[auto] / speeds[best],
        "interval": bootstrap(pairs, lambda s: s[..., 0] / s[..., 1] / (s[..., 2] / s[..., 3])),
        "ratios": {str(c.draft_tokens): speeds[auto] / speeds[c] for c in found},
    }


if __name__ == "__main__":
    main()
