"""Two source trees of pard2 against each other: is the new one slower?

    python benchmarks/old_and_new.py OLD/src NEW/src --rounds 5 --json old_and_new.json

Every measurement is a fresh process with PYTHONPATH at one tree, old and new in turn, every other round the
other way round. A process uses what both trees have: `Engine.from_pretrained` and `generate`, `python -m
pard2 train` and the `metrics.jsonl` of its run, `python -m pard2 --help`, and imports. Measured are

- a plain step, and a cycle of TI and of TD with K proposals: seconds of cycles by their
  number, one sequence at a time;
- a training step: the median of a run's steps but the first;
- start-up: wall time of `--help`, of `import pard2`, and of importing the engine, the
  interpreter's start included.

The ratio is new over old, the median of the rounds' ratios; its interval is a 95 % bootstrap over rounds.
More than LIMIT is marked. The two trees must say the same texts and reach the same losses; where they do
not, the script says so and exits with 1. Both trees need the packages of this interpreter; a round takes two
to three minutes on two cores.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

LIMIT = 1.03
PARTS = ("decoding", "training", "start-up")
STARTS = {"--help": ["-m", "pard2", "--help"], "import pard2": ["-c", "import pard2"], "import the engine": ["-c", "import pard2.engine.engine"]}
PROMPTS = [
    "A train travels 60 km in 45 minutes. What is its speed in km/h? Show your work.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Explain in three sentences why the sky is blue.",
]
SMOLLM2_MASK = 16  # which no text contains
METHODS = {"plain step": "ar", "TI cycle": "pard2-ti", "TD cycle": "pard2-td"}

Figures = dict[str, Any]  # milliseconds by measure, and what both trees must agree on


# --- in a process of one tree ------------------------------------------------------------------------


def decode(args: argparse.Namespace) -> Figures:
    """Milliseconds of a cycle by method, prompt by prompt in turn, and a digest of what was said."""
    from pard2 import Engine, SamplingParams

    first = Engine.from_pretrained(args.target, args.draft, "pard2-td", args.dtype, draft_tokens=args.draft_tokens, max_batch=1)
    engines = {
        name: Engine(first.target, None if method == "ar" else first.draft, method, **_options(method, args)) for name, method in METHODS.items()
    }
    params, said = SamplingParams(args.new_tokens, ignore_eos=True), hashlib.sha256()
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        list(engine.generate(PROMPTS[:1], SamplingParams(8, ignore_eos=True)))
    for prompt in PROMPTS:
        for name, engine in engines.items():
            (completion,) = engine.generate([prompt], params)
            taken[name].append(1000 * completion.stats.decode_seconds / completion.stats.cycles)
            said.update(json.dumps(completion.token_ids).encode())
    return {"milliseconds": {name: median(times) for name, times in taken.items()}, "same": said.hexdigest()}


def _options(method: str, args: argparse.Namespace) -> dict[str, Any]:
    return {"max_batch": 1} if method == "ar" else {"max_batch": 1, "draft_tokens": args.draft_tokens}


# --- from outside ------------------------------------------------------------------------------------


def run(tree: Path, arguments: list[str]) -> tuple[float, str]:
    """Wall seconds and standard output of this interpreter at one tree.

    Raises `SystemExit` with its last words where it fails.
    """
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(arguments)[:200]} failed:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def decoding(tree: Path, args: argparse.Namespace) -> Figures:
    shipped = tree / "pard2" / "assets" / "smollm2-draft"
    options = ["--target", args.target, "--draft", args.draft or str(shipped), "--dtype", args.dtype]
    options += ["--draft-tokens", str(args.draft_tokens), "--new-tokens", str(args.new_tokens)]
    _, output = run(tree, [__file__, str(tree), str(tree), "--child", *options])
    return json.loads(output.splitlines()[-1])


def training(tree: Path, args: argparse.Namespace) -> Figures:
    with tempfile.TemporaryDirectory() as directory:
        config = write_run(Path(directory), args.target, args.steps, args.layers)
        run(tree, ["-m", "pard2", "train", str(config)])
        return read_steps(Path(directory) / "run" / "metrics.jsonl")


def write_run(directory: Path, target: str, steps: int, layers: int) -> Path:
    """The configuration of a small run on conversations that are written beside it."""
    with open(directory / "train.jsonl", "w") as file:
        for number in range(16):
            answer = " ".join(f"Step {number + line}: {number} plus {line} is {number + line}." for line in range(30))
            messages = [{"role": "user", "content": f"Count up from {number}."}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    config = {
        "target": {"name": target},
        "draft": {"layers": layers, "share_vocabulary": True} | ({"mask_token": SMOLLM2_MASK} if target == "smollm2" else {}),
        "data": {"train": [str(directory / "train.jsonl")], "max_length": 512, "on_long": "cut"},
        "objective": {"draft_tokens": 16},
        "loop": {"output": str(directory / "run"), "steps": steps, "rows_per_step": 1, "evaluate_every": steps + 1, "save_every": steps + 1},
    }
    path = directory / "run.yaml"
    path.write_text(json.dumps(config))  # which is YAML, too
    return path


def read_steps(metrics: Path) -> Figures:
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [round(step["loss"], 2) for step in steps]
    return {"milliseconds": {"training step": 1000 * median(step["seconds"] for step in steps[1:])}, "same": losses}


def starting(tree: Path, args: argparse.Namespace) -> Figures:
    return {"milliseconds": {name: 1000 * min(run(tree, words)[0] for _ in range(args.starts)) for name, words in STARTS.items()}, "same": None}


MEASURES: dict[str, Callable[[Path, argparse.Namespace], Figures]] = dict(zip(PARTS, (decoding, training, starting), strict=True))


# --- what it says ------------------------------------------------------------------------------------


def compare(old: list[Figures], new: list[Figures], intervals: Callable[[list[tuple[float, float]]], list[float] | None]) -> list[dict[str, Any]]:
    """A result for each measure, from the figures of the same rounds. intervals: of the ratio of sums."""
    results = []
    for name in old[0]["milliseconds"]:
        pairs = [(a["milliseconds"][name], b["milliseconds"][name]) for a, b in zip(old, new, strict=True)]
        ratio = median(b / a for a, b in pairs)
        one = {"measure": name, "old_milliseconds": median(a for a, _ in pairs), "new_milliseconds": median(b for _, b in pairs), "ratio": ratio}
        same = all(a["same"] == b["same"] for a, b in zip(old, new, strict=True))
        results.append(one | {"interval": intervals(pairs), "within_limit": ratio <= LIMIT, "same": same, "all": pairs})
    return results


def print_results(results: list[dict[str, Any]]) -> None:
    print(f"| measure | old, ms | new, ms | new / old (95 %) | at most {LIMIT} | same |\n| --- | --- | --- | --- | --- | --- |")
    for r in results:
        interval = "" if r["interval"] is None else " ({:.3f} to {:.3f})".format(*r["interval"])
        words = ("yes" if r["within_limit"] else "NO", "yes" if r["same"] else "NO")
        print(
            f"| {r['measure']} | {r['old_milliseconds']:.1f} | {r['new_milliseconds']:.1f} | {r['ratio']:.3f}{interval} | {words[0]} | {words[1]} |"
        )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a `src` directory")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=None, help="by default the one that ships with each tree")
    parser.add_argument("--dtype", default="bfloat16", help="of decoding; training is in float32")
    parser.add_argument("--draft-tokens", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of a training run; the first is not counted")
    parser.add_argument("--layers", type=int, default=4, help="of the draft that is trained")
    parser.add_argument("--starts", type=int, default=3, help="of each kind in a round; the fastest counts")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # of `old`
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    if args.child:
        import pard2

        if not Path(pard2.__file__).is_relative_to(args.old):
            raise SystemExit(f"this is {pard2.__file__}")
        print(json.dumps(decode(args)))
        return
    from common import in_turn  # which a tree of other modules could not import
    from pard2.bench.result_file import write_result
    from pard2.environment import meta
    from pard2.intervals import bootstrap

    about, trees = meta(), {"old": args.old.resolve(), "new": args.new.resolve()}
    results: list[dict[str, Any]] = []
    for part in args.parts:
        work = {name: lambda tree=tree, part=part: MEASURES[part](tree, args) for name, tree in trees.items()}
        for tree in trees.values():  # compiles its bytecode, and brings its files into memory
            run(tree, STARTS["import the engine"])
        taken = in_turn(work, args.rounds)
        results += compare(taken["old"], taken["new"], lambda pairs: bootstrap(pairs, lambda s: s[..., 1] / s[..., 0]))
        if args.json:
            write_result(args.json, about, results, limit=LIMIT)
    print_results(results)
    if not all(one["same"] for one in results):
        raise SystemExit("the trees do not say the same")


if __name__ == "__main__":
    main()
