r"""The objectives against each other: the same draft, data, order of rows and number of steps, then real
decoding of held-out prompts.

Each run goes on from one draft, by default the shipped one: from nothing, a small budget teaches
the first position alone, where all objectives are the same. A run that was stopped goes on;
finished ones are only decoded.

    python benchmarks/objective_ablation.py --data answers.jsonl \
        --suites eval_gsm8k.jsonl eval_humaneval.jsonl --json objective_ablation.json
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pard2.bench.result_file import write_result
from pard2.checkpoints.embedded import embedded_draft
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.config import TrainConfig
from pard2.data.records import read_records
from pard2.environment import meta
from pard2.train.evaluate import acceptance, held_out_prompts
from pard2.train.loop import train

OBJECTIVES: dict[str, dict[str, Any]] = {
    "none": {"weighting": "none"},
    "cat": {"weighting": "cat"},
    "d-pace": {"weighting": "d-pace"},
    "overlap": {"weighting": "overlap"},
    "cat, cod-corrected": {"weighting": "cat", "cod_correction": True},
}


def run_config(args: argparse.Namespace, name: str) -> TrainConfig:
    sections: dict[str, dict[str, Any]] = {
        "target": {"name": args.target},
        "draft": {"path": args.draft, "share_vocabulary": True, "standardise_features": True},
        "data": {"train": [str(path) for path in args.data], "max_length": 384, "on_long": "cut", "row_length": args.row_length},
        "objective": {"draft_tokens": args.draft_tokens, "retention": 0.7, "min_retention": 0.1, "feature_drop": 0.15} | OBJECTIVES[name],
        "optimizer": {"lr": args.lr, "warmup_steps": 5, "min_lr_ratio": 0.05},
        "features": {"cache": str(args.runs / "states")},  # the target's part is the same for all
        "loop": {"output": str(args.runs / name.replace(", ", "-")), "steps": args.steps, "rows_per_step": 1, "save_every": 20, "device": "cpu"},
    }
    return TrainConfig.model_validate(sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="conversations that the target answered")
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=embedded_draft(), help="that all runs go on from")
    parser.add_argument("--draft-tokens", type=int, default=6, help="its K")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--prompts", type=int, default=12, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--methods", nargs="+", choices=["pard2-td", "pard2-ti"], default=["pard2-td"])
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--train-only", action="store_true", help="leave the decoding to a later call")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()

    drafts = {name: train(run_config(args, name), Console(stderr=True)) for name in args.objectives}
    if args.train_only:
        return
    target = load_target(args.target, "float32")
    settings = {key: getattr(args, key) for key in ("steps", "row_length", "lr", "draft_tokens", "new_tokens")}
    results = []
    for name, directory in ({"before": Path(args.draft)} | drafts).items():
        draft = load_draft(str(directory), target, torch.float32)
        for suite in args.suites:
            prompts = held_out_prompts(target, read_records(suite)[: args.prompts])
            for method in args.methods:
                results.append({"objective": name, "suite": suite.stem} | acceptance(target, draft, prompts, method, args.new_tokens))
                print(results[-1], flush=True)
                write_result(args.json, about, results, settings=settings)


if __name__ == "__main__":
    main()
