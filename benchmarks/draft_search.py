r"""Drafts of different shapes and training against each other at one small budget of tokens, judged by the
tokens a second that they promise.

    python benchmarks/draft_search.py --data answers.jsonl --prompts heldout.jsonl \
        --json docs/results/draft_search.json

Every arm is the base but for what its name says, trained on the same conversations in the same order for
the same number of steps, one after the other; then each decodes the same held-out prompts. `--continue
DRAFT` lets the arms that a draft of fixed shape can have go on from it, where they all differ more than
after a cold start. An arm whose run is finished is only decoded, so that two calls with `--train-only` can
share the arms between two cores.

Promised tokens a second: the most, over the number k of proposals, of (1 + sum of the shares of cycles that
accept position 1 .. k) / (seconds of a cycle with k). A cycle's seconds are measured with all K proposals and
with none, one prompt at a time; between the two only verification changes, in a straight line.
"""

import argparse
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich.console import Console

from pard2.bench.result_file import write_result
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.config import TrainConfig
from pard2.data.records import read_records
from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.environment import meta
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.train.evaluate import acceptance, held_out_prompts
from pard2.train.loop import train

_TIMED_TOKENS = 48  # of each prompt whose cycles are timed

Sections = dict[str, dict[str, Any]]

# From nothing. The base has 5 layers, the first and the last, K = 6 and r = 0.25.
COLD: dict[str, Sections] = {
    "base": {},
    "2 layers": {"draft": {"layers": [0, 29]}},
    "4 layers": {"draft": {"layers": [0, 1, 24, 29]}},
    "6 layers": {"draft": {"layers": [0, 1, 2, 24, 27, 29]}},
    "8 layers": {"draft": {"layers": [0, 1, 2, 19, 21, 24, 27, 29]}},
    "first layers": {"draft": {"layers": [0, 1, 2, 3, 4]}},
    "last layers": {"draft": {"layers": [25, 26, 27, 28, 29]}},
    "even layers": {"draft": {"layers": [0, 7, 14, 22, 29]}},
    "K 10": {"objective": {"draft_tokens": 10}},
    "projection 8x": {"optimizer": {"projection_lr_ratio": 8.0}},
    "features of the last layers": {"draft": {"target_layers": [-1, -2, -3, -5]}, "features": {"cache": None}},
}

# From a draft. The base has r = 0.5.
WARM: dict[str, Sections] = {
    "base": {},
    "lr 2e-3": {"optimizer": {"lr": 2e-3}},
    "lr 1.2e-2": {"optimizer": {"lr": 1.2e-2}},
    "r 0.25": {"objective": {"retention": 0.25}},
    "r 0.8": {"objective": {"retention": 0.8}},
    "no weights": {"objective": {"weighting": "none"}},
    "d-pace": {"objective": {"weighting": "d-pace"}},
    "all with features": {"objective": {"feature_drop": 0.0}},
    "half without features": {"objective": {"feature_drop": 0.5}},
    "projection 8x": {"optimizer": {"projection_lr_ratio": 8.0}},
}


@dataclass(frozen=True)
class Cycle:
    """Seconds of a cycle: in the draft, in the target, and besides."""

    draft: float
    target: float
    other: float


def run_config(args: argparse.Namespace, name: str) -> TrainConfig:
    draft = {"path": args.start} if args.start else {"layers": [0, 1, 2, 24, 29], "vocabulary_size": 8192, "mask_token": 16}
    sections: Sections = {
        "target": {"name": args.target, "dtype": args.precision},
        "draft": draft | {"share_vocabulary": True, "standardise_features": True},
        "data": {"train": [str(path) for path in args.data], "max_length": 384, "on_long": "cut", "row_length": 1280},
        "features": {"cache": str(args.runs / "states")},  # the target's part is the same for nearly all
        "objective": {"draft_tokens": 6, "retention": 0.5 if args.start else 0.25, "min_retention": 0.02, "feature_drop": 0.15},
        "optimizer": {"kind": "muon", "lr": 6e-3, "schedule": "linear", "warmup_steps": 4, "min_lr_ratio": 0.02},
        "loop": {
            "output": str(args.runs / name.replace(" ", "-")),
            "steps": args.steps,
            "rows_per_step": 2,
            "device": "cpu",
            "precision": args.precision,
        },
    }
    for section, fields in args.arms[name].items():
        sections[section] = sections[section] | fields
    return TrainConfig.model_validate(sections)


def cycle(target: Target, draft: Draft | None, method: str, k: int | Literal["auto"], prompts: list[list[int]]) -> Cycle:
    """Medians over the cycles of a few prompts, decoded one by one with k proposals each."""
    engine = Engine(target, draft, method, k, max_batch=1, cache_tokens=max(map(len, prompts)) + _TIMED_TOKENS)
    steps = [step for prompt in prompts for step in list(engine.stream(prompt, SamplingParams(max_tokens=_TIMED_TOKENS, ignore_eos=True)))[2:-1]]
    parts = [(step.draft_seconds, step.verify_seconds, step.seconds - step.draft_seconds - step.verify_seconds) for step in steps]
    return Cycle(*(median(part) for part in zip(*parts, strict=True)))


def promised(accepted_by_position: list[float], plain: Cycle, full: Cycle) -> tuple[float, int]:
    """Tokens a second with the best number of proposals, and that number; 0 is plain decoding.

    accepted_by_position: the share of cycles that accept each, with K proposals.
    full: a cycle with K of them.
    """
    k = len(accepted_by_position)
    choices = [(1 / (plain.target + plain.other), 0)]
    for count, accepted in enumerate(accumulate(accepted_by_position), start=1):
        seconds = full.draft + plain.target + (full.target - plain.target) * count / k + full.other
        choices.append(((1 + accepted) / seconds, count))
    return max(choices)


def judge(target: Target, draft: Draft, prompts: list[list[int]], timed: list[list[int]], new_tokens: int) -> dict[str, Any]:
    k = draft.spec.draft_tokens
    plain, full = cycle(target, None, "ar", "auto", timed), cycle(target, draft, "pard2-td", k, timed)
    found: dict[str, Any] = {
        "plain_step_ms": round(1e3 * (plain.target + plain.other), 2),
        "draft_ms": round(1e3 * full.draft, 2),
        "verify_ms": round(1e3 * full.target, 2),
    }
    for method in ("pard2-td", "pard2-ti"):
        seen = acceptance(target, draft, prompts, method, new_tokens)
        speed, count = promised(seen["accepted_by_position"], plain, full)
        found[method] = {
            "acceptance_length": round(seen["acceptance_length"], 3),
            "interval": seen["acceptance_length_interval"],
            "accepted_by_position": seen["accepted_by_position"],
            "promised_tokens_per_second": round(speed, 1),
            "promised_speedup": round(speed * (plain.target + plain.other), 3),
            "best_k": count,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="conversations that the target answered")
    parser.add_argument("--prompts", type=Path, required=True, help="held-out prompts")
    parser.add_argument("--most-prompts", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--continue", dest="start", metavar="DRAFT", help="go on from this draft; by default each arm cuts its own")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="by default all")
    parser.add_argument("--steps", type=int, default=32, help="of two rows of 1,280 tokens")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    parser.add_argument("--train-only", action="store_true", help="leave the decoding to a later call")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()
    args.arms = WARM if args.start else COLD
    names = args.only or list(args.arms)
    unknown = [name for name in names if name not in args.arms]
    if unknown:
        parser.error(f"no arm {unknown[0]!r}; there are {', '.join(args.arms)}")

    drafts = {name: train(run_config(args, name), Console(stderr=True)) for name in names}
    if args.train_only:
        return
    target = load_target(args.target, "bfloat16")
    prompts = held_out_prompts(target, read_records(args.prompts)[: args.most_prompts])
    results = []
    for name, directory in drafts.items():
        draft = load_draft(str(directory), target, torch.bfloat16)
        results.append({"arm": name, "layers": draft.num_layers} | judge(target, draft, prompts, prompts[:3], args.new_tokens))
        td, ti = results[-1]["pard2-td"], results[-1]["pard2-ti"]
        print(
            f"{name:<28} AL {td['acceptance_length']:.2f} TD {ti['acceptance_length']:.2f} TI  draft {results[-1]['draft_ms']:.1f} ms  "
            f"{td['promised_tokens_per_second']:.1f} tokens/s = {td['promised_speedup']:.2f}x with {td['best_k']}",
            flush=True,
        )
        settings = {"steps": args.steps, "new_tokens": args.new_tokens, "prompts": len(prompts), "continued": args.start is not None}
        write_result(args.json, about, results, settings=settings)


if __name__ == "__main__":
    main()
