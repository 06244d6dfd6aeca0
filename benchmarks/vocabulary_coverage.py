r"""How much of a target's answers a part of the vocabulary covers: the tokens that every other conversation
uses most, counted on the rest.

    python benchmarks/vocabulary_coverage.py --data answers.jsonl more.jsonl --sizes 8192 12288 16384 \
        --json docs/results/vocabulary_coverage.json

Each file is counted by itself; the list is made of all files together. `--draft` adds the
list of a draft that has one.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from pard2.bench.result_file import write_result
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.data.corpus import Examples
from pard2.data.examples import load_examples
from pard2.environment import meta
from pard2.train.initial import answer_vocabulary


def halves(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Answer tokens of every other conversation, and of the rest."""
    number = np.repeat(np.arange(len(examples)), examples.lengths)
    even = number % 2 == 0
    return examples.tokens[examples.predicted & even], examples.tokens[examples.predicted & ~even]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="conversations that the target answered")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", help="one with a part of the vocabulary")
    parser.add_argument("--sizes", nargs="+", type=int, default=[8192, 12288, 16384])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()
    target = load_target(args.target, "float32", "cpu", weight_format="plain")
    counted = {Path(name).stem: halves(load_examples([name], target.tokenizer, target.eos_token_ids, 384, "cut")) for name in args.data}
    made_of = np.concatenate([list_half for list_half, _ in counted.values()])
    together = Examples(tokens=made_of, predicted=np.ones(len(made_of), bool), offsets=np.array([0, len(made_of)]), ids=["all"])
    lists = {f"{size:,} tokens": answer_vocabulary(together, size, target.vocab_size) for size in args.sizes}
    if args.draft is not None:
        short = load_draft(args.draft, target, torch.float32, weight_format="plain").short_head
        if short is None:
            parser.error(f"{args.draft} proposes the whole vocabulary")
        lists["the draft's list"] = short.token_ids
    results = []
    for name, (_, tokens) in counted.items():
        covered = {label: round(float(np.isin(tokens, token_ids.numpy()).mean()), 4) for label, token_ids in lists.items()}
        results.append({"data": name, "tokens": len(tokens), "covered": covered})
        print(f"{name:<24} {len(tokens):>9,} tokens  " + "  ".join(f"{label}: {share:.1%}" for label, share in covered.items()))
    write_result(args.json, about, results, list_tokens=len(made_of))


if __name__ == "__main__":
    main()
