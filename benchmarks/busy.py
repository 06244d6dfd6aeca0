"""Decoding on an idle machine and on one whose other programs want a core, by how torch's
threads wait for each other.

    python benchmarks/busy.py --rounds 5 --json docs/results/busy.json

torch shares each product out among OpenMP threads, which wait for one another some hundred times a token. A
thread that spins while its neighbour is off the core burns the very time that the neighbour needs. Each
setting is a process of its own (OpenMP reads its environment once), loaded once; all take turns, round by
round, first with nothing else running, then beside one process that never rests. Tokens a second are medians;
`kept` is the median, over rounds, of a setting's speed over that of `torch's own` on the idle machine in the
same round. The line `chosen` has no setting: there the engine itself gives up threads that have lost their
cores (`pard2.engine.threads`). `our kernels` are not torch's threads at all: they sleep when they wait.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import in_turn
from pard2.bench.result_file import write_result
from pard2.environment import meta

PROMPT = "A baker sells 14 loaves in the morning and twice as many in the afternoon. Each loaf costs $3. How much money does she take in?"
METHODS = ("ar", "pard2-td")
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
OWN = "torch's own"
FORM = "PARD2_BUSY_FORM"  # of the weights; fbgemm where nothing is said
# GOMP_SPINCOUNT of the GNU library that comes with torch: 300,000 turns where
# nothing is said, 0 with PASSIVE.
SETTINGS: dict[str, dict[str, str]] = {
    OWN: {"GOMP_SPINCOUNT": "300000"},
    "chosen": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 100,000": {"GOMP_SPINCOUNT": "100000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "our kernels": {FORM: "panels"},
    "ours, int8": {FORM: "int8"},
}


class Child:
    """A process of one setting that decodes when it is asked to."""

    def __init__(self, setting: dict[str, str]) -> None:
        bare = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        given = {name: value for name, value in setting.items() if value}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=bare | given
        )
        self.ask("ar", 8), self.ask("pard2-td", 8)

    def ask(self, method: str, tokens: int) -> dict[str, float]:
        print(method, tokens, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """A child's life: a line with a method and a number of tokens in, a line of figures out."""
    import torch

    from pard2 import Engine, SamplingParams
    from pard2.checkpoints.loading import load_target
    from pard2.checkpoints.read import load_draft

    form = os.environ.get(FORM, "fbgemm")
    target = load_target("smollm2", device="cpu", weight_format=form)
    draft = load_draft("smollm2", target, torch.bfloat16, weight_format=form)
    engines = {method: Engine(target, draft, method, max_batch=1, cache_tokens=512) for method in METHODS}
    for line in sys.stdin:
        method, tokens = line.split()
        cpu = time.process_time()
        (completion,) = engines[method].generate([PROMPT], SamplingParams(max_tokens=int(tokens), ignore_eos=True))
        stats = completion.stats
        seconds = stats.prefill_seconds + stats.decode_seconds
        cores = (time.process_time() - cpu) / seconds
        figures = {"tokens_per_second": int(tokens) / seconds, "acceptance_length": stats.acceptance_length, "cores": cores}
        print(json.dumps(figures), flush=True)


def measure(children: dict[str, Child], rounds: int, tokens: int) -> dict[tuple[str, str], list[dict[str, float]]]:
    return in_turn({(name, method): lambda c=child, m=method: c.ask(m, tokens) for name, child in children.items() for method in METHODS}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer on the idle machine")
    parser.add_argument("--busy-tokens", type=int, default=24, help="of each answer beside the other process")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return serve()
    about = meta()
    children = {name: Child(SETTINGS[name]) for name in args.settings}
    idle = measure(children, args.rounds, args.tokens)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy = measure(children, args.rounds, args.busy_tokens)
    finally:
        other.kill()
    for child in children.values():
        child.close()
    results = []
    for method in METHODS:
        base = [one["tokens_per_second"] for one in idle[args.settings[0], method]]
        for name in args.settings:
            row: dict[str, Any] = {"setting": name, "environment": SETTINGS[name], "method": method}
            for when, took in (("idle", idle), ("busy", busy)):
                speeds = [one["tokens_per_second"] for one in took[name, method]]
                row[when] = {key: round(median(one[key] for one in took[name, method]), 2) for key in took[name, method][0]}
                row[when] |= {"kept": round(median(a / b for a, b in zip(speeds, base, strict=True)), 3), "all": [round(s, 2) for s in speeds]}
            results.append(row)
            shown = (f"{when} {row[when]['tokens_per_second']:5.1f} tokens/s, kept {row[when]['kept']:.2f}" for when in ("idle", "busy"))
            print(f"{method:<9} {name:<13}", *shown, sep="  ")
    if args.json:
        write_result(args.json, about, results)


if __name__ == "__main__":
    main()
