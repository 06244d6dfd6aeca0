"""Two source trees of pard2 against each other: is the new one slower?

    python benchmarks/old_and_new.py OLD/src NEW/src --rounds 6 --json old_and_new.json

Each tree has processes of its own, with PYTHONPATH at it. Old and new take turns, every other round the other
way round. A process uses what both trees have: `Engine.from_pretrained` and `generate`, `python -m
pard2 train` and the `metrics.jsonl` of its run, `python -m pard2 --help`, and imports. Measured are

- a plain step, and a cycle of TI and of TD with K proposals: seconds of cycles by their
  number, one prompt a round;
- a training step, one a round, but the first, which compiles;
- start-up: wall time of `--help`, of `import pard2`, and of importing the engine, the
  interpreter's start included.

The ratio is new over old, the median of the rounds' ratios; its interval is a 95 % bootstrap over rounds.
More than LIMIT is marked. The two trees must say the same texts and reach the same losses; where they do
not, the script says so and exits with 1. Both trees need the packages of this interpreter.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
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
WARM_UP = "Count to ten."
SMOLLM2_MASK = 16  # which no text contains
METHODS = {"plain step": "ar", "TI cycle": "pard2-ti", "TD cycle": "pard2-td"}

Figures = dict[str, Any]  # milliseconds by measure, and what both trees must agree on


# --- in a process of one tree ------------------------------------------------------------------------


def load_engines(args: argparse.Namespace) -> dict[str, Any]:
    """An engine for each measure of decoding, of the same models, warmed up."""
    from pard2 import Engine, SamplingParams

    first = Engine.from_pretrained(args.target, args.draft, "pard2-td", args.dtype, draft_tokens=args.draft_tokens, max_batch=1)
    engines = {
        name: Engine(first.target, None if method == "ar" else first.draft, method, **_options(method, args)) for name, method in METHODS.items()
    }
    for engine in engines.values():
        list(engine.generate([WARM_UP], SamplingParams(max_tokens=8, ignore_eos=True)))  # an iterator in older trees
    return engines


def decode(engines: dict[str, Any], prompt: str, new_tokens: int) -> Figures:
    """Milliseconds of a cycle by method, and a digest of what was said."""
    from pard2 import SamplingParams

    said, taken = hashlib.sha256(), {}
    for name, engine in engines.items():
        (completion,) = engine.generate([prompt], SamplingParams(max_tokens=new_tokens, ignore_eos=True))
        taken[name] = 1000 * completion.stats.decode_seconds / completion.stats.cycles
        said.update(json.dumps(completion.token_ids).encode())
    return {"milliseconds": taken, "same": said.hexdigest()}


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


class Decoding:
    """A process of one tree that has its models loaded, and decodes the next prompt whenever it is called.

    The other tree's process waits meanwhile.
    """

    def __init__(self, tree: Path, args: argparse.Namespace) -> None:
        shipped = tree / "pard2" / "assets" / "smollm2-draft"
        options = ["--target", args.target, "--draft", args.draft or str(shipped), "--dtype", args.dtype]
        options += ["--draft-tokens", str(args.draft_tokens), "--new-tokens", str(args.new_tokens)]
        command = [sys.executable, __file__, str(tree), str(tree), "--child", *options]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(tree)}, **pipes)
        self._prompts = cycle(PROMPTS)
        self._read()

    def __call__(self) -> Figures:
        assert self._process.stdin is not None
        print(json.dumps(next(self._prompts)), file=self._process.stdin, flush=True)
        return json.loads(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"decoding ended, {self._process.args}")
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(args: argparse.Namespace) -> None:
    """The child of `Decoding`: a line for each line that it is given."""
    import pard2

    if not Path(pard2.__file__).is_relative_to(args.old):
        raise SystemExit(f"this is {pard2.__file__}")
    engines = load_engines(args)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(decode(engines, json.loads(line), args.new_tokens)), flush=True)


class Training:
    """A training run of one tree that makes a step whenever it is called, and rests (SIGSTOP) in between."""

    def __init__(self, tree: Path, args: argparse.Namespace) -> None:
        self._directory = tempfile.TemporaryDirectory()
        config = write_run(Path(self._directory.name), args.target, args.rounds + 2, args.layers, args.max_length)
        command = [sys.executable, "-m", "pard2", "train", str(config)]
        self._process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=subprocess.DEVNULL)
        self._step()  # in which kernels are compiled

    def __call__(self) -> Figures:
        self._process.send_signal(signal.SIGCONT)
        started = time.perf_counter()
        loss = self._step()
        return {"milliseconds": {"training step": 1000 * (time.perf_counter() - started)}, "same": round(loss, 2)}

    def _step(self) -> float:
        """Wait for the end of a step; its loss."""
        metrics = Path(self._directory.name) / "run" / "metrics.jsonl"
        before = steps = read_losses(metrics)
        while len(steps) == len(before):
            if self._process.poll() is not None:
                raise SystemExit(f"training ended, {self._process.args}")
            time.sleep(0.002)
            steps = read_losses(metrics)
        self._process.send_signal(signal.SIGSTOP)
        return steps[-1]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()


def read_losses(metrics: Path) -> list[float]:
    """Of the steps so far."""
    text = metrics.read_text() if metrics.exists() else ""
    return [json.loads(line)["loss"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


def write_run(directory: Path, target: str, steps: int, layers: int, max_length: int) -> Path:
    """The configuration of a small run on conversations that are written beside it."""
    with open(directory / "train.jsonl", "w") as file:
        for number in range(16):
            answer = " ".join(f"Step {number + line}: {number} plus {line} is {number + line}." for line in range(30))
            messages = [{"role": "user", "content": f"Count up from {number}."}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    config = {
        "target": {"name": target},
        "draft": {"layers": layers, "share_vocabulary": True} | ({"mask_token": SMOLLM2_MASK} if target == "smollm2" else {}),
        "data": {"train": [str(directory / "train.jsonl")], "max_length": max_length, "on_long": "cut"},
        "objective": {"draft_tokens": 8},
        "loop": {"output": str(directory / "run"), "steps": steps, "rows_per_step": 1, "evaluate_every": steps + 1, "save_every": steps + 1},
    }
    path = directory / "run.yaml"
    path.write_text(json.dumps(config))  # which is YAML, too
    return path


def starting(tree: Path, args: argparse.Namespace) -> Figures:
    return {"milliseconds": {name: 1000 * min(run(tree, words)[0] for _ in range(args.starts)) for name, words in STARTS.items()}, "same": None}


@contextmanager
def measures(part: str, trees: dict[str, Path], args: argparse.Namespace) -> Iterator[dict[str, Callable[[], Figures]]]:
    """What measures a part once, by tree."""
    if part == "start-up":
        yield {name: partial(starting, tree, args) for name, tree in trees.items()}
        return
    kind = Decoding if part == "decoding" else Training
    running = {name: kind(tree, args) for name, tree in trees.items()}
    try:
        yield running
    finally:
        for one in running.values():
            one.close()


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
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=None, help="by default the one that ships with each tree")
    parser.add_argument("--dtype", default="bfloat16", help="of decoding; training is in float32")
    parser.add_argument("--draft-tokens", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4, help="of the draft that is trained")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a packed sequence, one a step")
    parser.add_argument("--starts", type=int, default=3, help="of each kind in a round; the fastest counts")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # of `old`
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    if args.child:
        return serve(args)
    from common import in_turn  # which a tree of other modules could not import
    from pard2.bench.result_file import write_result
    from pard2.environment import meta
    from pard2.intervals import bootstrap

    about, trees = meta(), {"old": args.old.resolve(), "new": args.new.resolve()}
    results: list[dict[str, Any]] = []
    for part in args.parts:
        for tree in trees.values():  # compiles its bytecode, and brings its files into memory
            run(tree, STARTS["import the engine"])
        with measures(part, trees, args) as work:
            taken = in_turn(work, args.rounds)
        results += compare(taken["old"], taken["new"], lambda pairs: bootstrap(pairs, lambda s: s[..., 1] / s[..., 0]))
        if args.json:
            write_result(args.json, about, results, limit=LIMIT)
    print_results(results)
    if not all(one["same"] for one in results):
        raise SystemExit("the trees do not say the same")


if __name__ == "__main__":
    main()
