r"""PARD-2, PARD, EAGLE-3 and an ordinary small draft, trained on equal terms: by their recipes, on the same
conversations in the same order, from the same seed, for the same number of steps; then real decoding of
held-out prompts at a fixed number of proposed tokens.

A run that was stopped goes on; a finished one is only decoded with. Results of other methods in the file
stay.

    python benchmarks/methods.py pard ar eagle3 --data answers.jsonl --json methods.json \
        --suites eval_gsm8k.jsonl eval_humaneval.jsonl eval_math500.jsonl eval_mt_bench.jsonl
"""

import argparse
from pathlib import Path

from rich.console import Console

from pard2.config import TrainConfig
from pard2.config_file import load_config
from pard2.train.loop import train

RECIPES = Path(__file__).parent.parent / "recipes"
FILES = {"pard2": "smollm2-start.yaml", "pard": "smollm2-pard.yaml", "ar": "smollm2-ar.yaml", "eagle3": "smollm2-eagle3.yaml"}


def run_config(args: argparse.Namespace, method: str) -> TrainConfig:
    """The run of a method's recipe, with what all of them have in common."""
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
        overrides.append(f"features.cache={(args.runs / 'states').absolute()}")
    return load_config(RECIPES / FILES[method], overrides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", choices=FILES)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="conversations that the target answered")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of both models while training")
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    args = parser.parse_args()
    for method in args.methods:
        train(run_config(args, method), Console(stderr=True))


if __name__ == "__main__":
    main()
