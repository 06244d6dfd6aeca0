r"""PARD-2, PARD, EAGLE-3 and an ordinary small draft, trained on equal terms: by their recipes, on the same
conversations in the same order, from the same seed, for the same number of steps; then real decoding of
held-out prompts at a fixed number of proposed tokens. And PARD-2 with one thing changed at a time.

A run that was stopped goes on; of a finished one only the decoding is done again. What the file says of other
runs stays, so that each can be trained when there is time.

    python benchmarks/methods.py pard ar eagle3 --data answers.jsonl --json methods.json --svg methods.svg \
        --suites eval_gsm8k.jsonl eval_humaneval.jsonl eval_math500.jsonl eval_mt_bench.jsonl
    python benchmarks/methods.py pard2 pard2-none pard2-overlap --json ablations.json ..
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pard2.bench.result_file import write_result
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.config import TrainConfig
from pard2.config_file import load_config
from pard2.data.records import read_records
from pard2.environment import meta
from pard2.models.target import Target
from pard2.train.curve import Point, picture, read_curve
from pard2.train.evaluate import acceptance, held_out_prompts
from pard2.train.loop import train

RECIPES = Path(__file__).parent.parent / "recipes"
PARD_MASKS = ["objective.draft_tokens=8", "objective.retention=0.7", "objective.min_retention=0.2"]
END = ["optimizer.schedule=linear", "optimizer.min_lr_ratio=0.02"]
# PARD-2 with one thing changed.
CHANGES = {
    "none": "objective.weighting=none",
    "d-pace": "objective.weighting=d-pace",
    "overlap": "objective.weighting=overlap",
    "drop-0": "objective.feature_drop=0",
    "drop-50": "objective.feature_drop=0.5",
    "last-layer": "draft.target_layers=[-1]",
    "16-tokens": "objective.draft_tokens=16",
}
# Of each: the recipe, what is changed in it, and how its draft decodes, each way with its tree's nodes.
METHODS: dict[str, tuple[str, list[str], list[tuple[str, int]]]] = {
    "pard2": ("smollm2-start", [*PARD_MASKS, *END], [("pard2-td", 0), ("pard2-ti", 0), ("pard2-td", 32)]),
    **{f"pard2-{name}": ("smollm2-start", [*PARD_MASKS, *END, change], [("pard2-td", 0), ("pard2-ti", 0)]) for name, change in CHANGES.items()},
    "pard": ("smollm2-pard", [], [("pard", 0), ("pard", 32)]),
    "ar": ("smollm2-ar", [], [("vsd", 0)]),
    "eagle3": ("smollm2-eagle3", [], [("eagle3", 0), ("eagle3", 32)]),
}
CACHED = [-1, -8, -16, -24, 2, 15, 27]  # the hidden states of all of them


def run_config(args: argparse.Namespace, method: str) -> TrainConfig:
    """The run of a method's recipe, with what all of them have in common."""
    recipe, own, _ = METHODS[method]
    overrides = [
        f"data.train={[str(path.absolute()) for path in args.data]}",
        "data.evaluation=null",
        f"loop.output={(args.runs / method).absolute()}",
        f"loop.steps={args.steps}",
        f"loop.precision={args.precision}",
        f"target.dtype={args.precision}",
        "loop.seed=0",
    ]
    if method != "pard":  # which asks the target nothing
        overrides += [f"features.cache={(args.runs / 'states').absolute()}", f"features.layers={CACHED}"]
    return load_config(RECIPES / f"{recipe}.yaml", own + overrides)


def training(directory: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What a run took and how it went, from its metrics."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    points = read_curve([directory], 50_000)
    return {
        "meta": about,
        "steps": len(records),
        "tokens": sum(record["tokens"] for record in records),
        "slots": sum(record["slots"] for record in records),
        "seconds": round(sum(record["seconds"] for record in records)),
        "curve": [asdict(point) for point in points],
    }


def decoding(args: argparse.Namespace, target: Target, method: str) -> list[dict[str, Any]]:
    """Acceptance of a method's draft on every suite, in each of its ways."""
    draft = load_draft(str(args.runs / method / "draft"), target, torch.bfloat16, weight_format=target.weight_format)
    found = []
    for suite in args.suites:
        prompts = held_out_prompts(target, read_records(suite)[: args.prompts])
        for way, tree in METHODS[method][2]:
            one = acceptance(target, draft, prompts, way, args.new_tokens, args.draft_tokens, tree)
            found.append({"trained": method, "suite": suite.stem, "tree": tree} | one)
            print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", choices=METHODS)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="conversations that the target answered")
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of both models while training")
    parser.add_argument("--draft-tokens", type=int, default=7, help="K of all methods when they decode")
    parser.add_argument("--prompts", type=int, default=20, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--train-only", action="store_true", help="leave the decoding to a later call")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--svg", type=Path, help="curves of all runs in the file")
    args = parser.parse_args()
    about = meta()
    about["argv"] = [about["argv"][0], *args.methods]  # where files lay matters to nobody

    for method in args.methods:
        train(run_config(args, method), Console(stderr=True))
    if args.train_only:
        return
    target = load_target("smollm2", "bfloat16")
    for method in args.methods:
        held = json.loads(args.json.read_text()) if args.json.exists() else {"results": [], "runs": {}}
        others = [one for one in held["results"] if one["trained"] != method]
        runs = held["runs"] | {method: training(args.runs / method, about)}
        settings = {name: getattr(args, name) for name in ("steps", "precision", "draft_tokens", "prompts", "new_tokens")}
        write_result(args.json, about, others + decoding(args, target, method), settings=settings, runs=runs)
        if args.svg is not None:
            args.svg.write_text(picture({name: [Point(**point) for point in run["curve"]] for name, run in runs.items()}, by_tokens=True))


if __name__ == "__main__":
    main()
