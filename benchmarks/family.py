r"""One draft for a family of targets: the one that it was trained for, the same after a short fine-tune, and
in int8. How many tokens does it still get accepted without the target's features (TI) and with them (TD), and
is decoding lossless against each?

    python benchmarks/family.py --answers answers.jsonl --json docs/results/family.json \
        --suites eval_gsm8k.jsonl eval_humaneval.jsonl eval_math500.jsonl eval_mt_bench.jsonl

The fine-tune is ours, of all weights: by cross-entropy on those of the target's own answers that are complete
and short, so that it learns to be brief. How far it went is said by its loss on answers kept apart, and by
the first choices there that are still the old target's. Texts are checked as `pard2 verify` does.
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from pard2.bench.result_file import write_result
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.data.corpus import Example
from pard2.data.examples import load_examples
from pard2.data.records import read_records
from pard2.engine.engine import Engine
from pard2.environment import meta
from pard2.models.target import Target
from pard2.train.evaluate import acceptance, held_out_prompts
from pard2.verify.greedy import NEAR_TIE, audit

HELD_OUT = 64  # answers that are not learned


def brief_answers(target: Target, file: Path, longest: int, kept: Path) -> list[Example]:
    """Conversations with a complete answer of at most so many characters, which `kept` holds later."""
    records = [one for one in read_records(file) if one.get("finish_reason") == "stop" and len(one["messages"][-1]["content"]) <= longest]
    kept.write_text("".join(f"{json.dumps(one)}\n" for one in records))
    return list(load_examples([str(kept)], target.tokenizer, target.eos_token_ids, 512, "skip"))


def losses(model: Any, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the answers' tokens, [their number], and the model's first choices there."""
    longest = max(len(one.token_ids) for one in examples)
    ids, learned = torch.zeros(len(examples), longest, dtype=torch.int64), torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, one in enumerate(examples):  # padded at the right, where causal attention does not look back from
        ids[row, : len(one.token_ids)] = torch.from_numpy(one.token_ids).long()
        learned[row, : len(one.token_ids)] = torch.from_numpy(one.predicted)
    states = model.base_model(ids[:, :-1]).last_hidden_state[learned[:, 1:]]
    logits = model.get_output_embeddings()(states).float()
    return cross_entropy(logits, ids[:, 1:][learned[:, 1:]], reduction="none"), logits.argmax(-1)


@torch.no_grad()
def held_out_loss(model: Any, examples: list[Example]) -> tuple[float, torch.Tensor]:
    parts = [losses(model, examples[i : i + 8]) for i in range(0, len(examples), 8)]
    return torch.cat([part[0] for part in parts]).mean().item(), torch.cat([part[1] for part in parts])


def fine_tuned(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Make the fine-tuned target; what was done, and how far it went."""
    directory.mkdir(parents=True, exist_ok=True)
    target = load_target("smollm2", "float32", weight_format="plain")
    model, examples = target.model, brief_answers(target, args.answers, args.longest, directory / "brief.jsonl")
    held_out, learned = examples[:HELD_OUT], examples[HELD_OUT:]
    before, old_choices = held_out_loss(model, held_out)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    generator, started = torch.Generator().manual_seed(0), time.perf_counter()
    for step in range(args.steps):
        optimizer.param_groups[0]["lr"] = args.lr * min(1, (step + 1) / 10) * (1 - step / args.steps)
        chosen = torch.randint(len(learned), (args.batch,), generator=generator).tolist()
        loss = losses(model, [learned[i] for i in chosen])[0].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1} of {args.steps}: loss {loss.item():.3f}", flush=True)
    seconds = time.perf_counter() - started
    after, choices = held_out_loss(model.eval(), held_out)
    model.save_pretrained(directory)
    target.tokenizer.save_pretrained(directory)
    return {
        "conversations": args.steps * args.batch,
        "seconds": round(seconds),
        "held_out_loss": [before, after],
        "held_out_choices_kept": (choices == old_choices).float().mean().item(),
    }


def measured(args: argparse.Namespace, member: str, target: Target) -> list[dict[str, Any]]:
    """Acceptance, and what the audit says of every text."""
    draft, results = load_draft(args.draft, target, torch.bfloat16), []
    for suite in args.suites:
        prompts = held_out_prompts(target, list(islice(read_records(suite), args.prompts)))
        for method in ("pard2-ti", "pard2-td"):
            found = acceptance(target, draft, prompts, method, args.new_tokens)
            audits = list(audit(Engine(target, draft, method, "full", max_batch=1), prompts[: args.audits], args.new_tokens))
            verdict = {
                "audited": len(audits),
                "lossless": sum(one.first_difference is None for one in audits),
                "near_ties": sum(one.near_ties for one in audits),
                "largest_gap": max(one.largest_gap for one in audits),
            }
            results.append({"target": member, "suite": suite.stem.removeprefix("eval_")} | found | verdict)
            print(results[-1], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, help="conversations that the target answered")
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--draft", default="smollm2", help="of PARD-2, trained for the embedded target")
    parser.add_argument("--steps", type=int, default=60, help="of the fine-tune")
    parser.add_argument("--batch", type=int, default=8, help="conversations a step")
    parser.add_argument("--longest", type=int, default=300, help="characters of an answer that is brief")
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--prompts", type=int, default=20, help="of each suite")
    parser.add_argument("--audits", type=int, default=5, help="prompts of each suite whose texts are checked")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--directory", type=Path, default=Path("runs/family"), help="of the fine-tuned target")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()
    settings = {name: getattr(args, name) for name in ("draft", "steps", "batch", "longest", "lr", "prompts", "audits", "new_tokens")}
    tuning = fine_tuned(args, args.directory)
    print(tuning, flush=True)
    results: list[dict[str, Any]] = []
    for member, name, form in (("own", "smollm2", "panels"), ("fine-tuned", str(args.directory), "panels"), ("int8", "smollm2", "int8")):
        results += measured(args, member, load_target(name, "bfloat16", weight_format=form))
        write_result(args.json, about, results, settings=settings | {"near_tie": NEAR_TIE}, fine_tune=tuning)


if __name__ == "__main__":
    main()
