r"""Decoding with the weights in each form that a CPU has: speed, acceptance, equality; and what int8 changes.

    python benchmarks/weight_forms.py --suites eval_gsm8k.jsonl --json docs/results/weight_forms.json
    python benchmarks/weight_forms.py --answers answers.jsonl --json docs/results/int8_model.json

Speed: every prompt is decoded with each form in turn, plain and by PARD-2 TD, one at a time; ratios are over
plain decoding with the first form, prompt by prompt. `panels+int8` is a target in one form with a draft in
another. `equal` counts the texts of TD that are those of plain decoding with the same form.

The model: the answers of a file, read by the target in int8 and with its weights as they are: nats, and first
choices that stay.
"""

import argparse
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pard2.bench.result_file import write_result
from pard2.bench.suites import read_suites
from pard2.checkpoints.embedded import embedded_draft
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.data.records import read_records
from pard2.engine.engine import Engine
from pard2.engine.prompts import encode_prompt
from pard2.engine.request import Completion
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import Stats
from pard2.environment import meta
from pard2.intervals import bootstrap
from pard2.kernels.team import in_place_of_torch
from pard2.models.target import Target


def engines(args: argparse.Namespace) -> dict[tuple[str, str], Engine]:
    """By target's and draft's form, and method."""
    found = {}
    for name in args.forms:
        form, _, other = name.partition("+")
        target = load_target(args.target, "bfloat16", "cpu", form)
        draft = load_draft(args.draft or embedded_draft(), target, torch.bfloat16, True, other or form)
        for method in ("ar", "pard2-td"):
            lengths = {"draft_tokens": args.draft_tokens} if method != "ar" else {}
            found[name, method] = Engine(target, draft if method != "ar" else None, method, max_batch=1, **lengths)
    return found


def speeds(args: argparse.Namespace) -> list[dict[str, Any]]:
    made, rows = engines(args), []
    for engine in made.values():  # compiled, measured, warm
        engine.generate([[1, 2, 3] * 8], SamplingParams(max_tokens=24, ignore_eos=True))
    for suite in read_suites(args.suites, args.prompts):
        done: dict[tuple[str, str], list[Completion]] = {key: [] for key in made}
        for number, prompt in enumerate(suite.prompts):
            order = list(made) if number % 2 == 0 else list(reversed(made))
            for key in order:
                done[key] += made[key].generate([prompt], SamplingParams(max_tokens=args.new_tokens))
        base = [one.stats.tokens_per_second for one in done[args.forms[0], "ar"]]
        for (form, method), completions in done.items():
            own, plain = [one.stats.tokens_per_second for one in completions], done[form, "ar"]
            pairs = list(zip(own, base, strict=True))
            interval = bootstrap([(a / b, 1) for a, b in pairs], lambda sums: sums[..., 0] / sums[..., 1])
            row = {
                "suite": suite.name,
                "form": form,
                "method": method,
                "tokens_per_second": round(median(own), 2),
                "ratio": round(median(a / b for a, b in pairs), 3),
                "interval_of_mean_ratio": interval,
                "over_own_plain": round(median(a / b.stats.tokens_per_second for a, b in zip(own, plain, strict=True)), 3),
                "prefill_seconds": round(median(one.stats.prefill_seconds for one in completions), 4),
                "acceptance_length": round(sum((one.stats for one in completions), Stats()).acceptance_length, 3),
                "equal": sum(a.token_ids == b.token_ids for a, b in zip(completions, plain, strict=True)),
                "prompts": len(completions),
            }
            rows.append(row)
            print(
                "{suite:<12} {form:<12} {method:<9} {tokens_per_second:6.1f} tokens/s  {ratio:.2f}x  AL {acceptance_length:.2f}  ".format(**row)
                + f"equal {row['equal']} of {row['prompts']}",
                flush=True,
            )
    return rows


@torch.inference_mode()
def read_answers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """int8 against the weights as they are, on answers of the target's own."""
    targets = {form: load_target(args.target, "bfloat16", "cpu", form) for form in ("panels", "int8")}
    tokens, kept, nats = 0, 0, dict.fromkeys(targets, 0.0)
    for context, answer in answers(args.answers, targets["panels"], args.skip):
        answer = answer[: args.answer_tokens - tokens]
        ids = torch.tensor([[*context, *answer]])
        logits = {form: target.forward(ids[:, :-1], num_logits=len(answer)).logits[0].float() for form, target in targets.items()}
        for form, each in logits.items():
            nats[form] -= each.log_softmax(-1).gather(-1, ids[0, len(context) :, None]).sum().item()
        kept += int((logits["panels"].argmax(-1) == logits["int8"].argmax(-1)).sum())
        tokens += len(answer)
        if tokens >= args.answer_tokens:
            break
    per_token = {name: total / tokens for name, total in nats.items()}
    row = {"tokens": tokens, "nats": per_token, "difference": per_token["int8"] - per_token["panels"], "first_choice_kept": kept / tokens}
    print(row)
    return [row]


def answers(file: Path, target: Target, skip: int) -> Iterable[tuple[list[int], list[int]]]:
    """Prompt and answer of each record, as token ids."""
    for record in islice(read_records(file), skip, None):
        context = encode_prompt(target, record["messages"][:-1], False)
        yield context, target.tokenizer.encode(record["messages"][-1]["content"], add_special_tokens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", type=Path)
    parser.add_argument("--answers", type=Path, help="JSONL of conversations that end with an answer of the target")
    parser.add_argument("--answer-tokens", type=int, default=50_000)
    parser.add_argument("--skip", type=int, default=0, help="records of --answers")
    parser.add_argument("--forms", nargs="+", default=["fbgemm", "panels+int8", "int8"], help="target's form, or TARGET+DRAFT")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=None, help="by default the embedded one")
    parser.add_argument("--draft-tokens", default="auto")
    parser.add_argument("--prompts", type=int, default=20, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    args.draft_tokens = int(args.draft_tokens) if args.draft_tokens.isdigit() else args.draft_tokens
    about = meta()
    if args.suites:
        return write_result(args.json, about, speeds(args))
    with in_place_of_torch():  # whose threads would spin beside those of the products
        write_result(args.json, about, read_answers(args))


if __name__ == "__main__":
    main()
