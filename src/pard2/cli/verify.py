"""`pard2 verify`: is decoding lossless here, with these weights, on this machine?"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pard2.cli.console import print_note, record_progress, working
from pard2.cli.options import (
    DeviceOption,
    DraftOption,
    DraftTokensOption,
    JsonOption,
    MethodOption,
    TargetOption,
    choose_draft,
    parse_draft_tokens,
)
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from pard2.engine.audit import PromptAudit
    from pard2.engine.prompts import Prompt

NOT_LOSSLESS = 1

# Prose, code, arithmetic, lists, repetition and another language: text of quite different acceptance.
PROMPTS = [
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A train travels 60 km in 45 minutes. What is its speed in km/h? Show your work.",
    "List the first ten prime numbers.",
    "Repeat the word 'hello' twenty times.",
    "Write a short poem about the sea.",
    "Traduis en français : The weather is nice today and we are going to the park.",
    "What is the difference between a list and a tuple in Python?",
]


def verify(
    target: TargetOption,
    draft: DraftOption = None,
    method: MethodOption = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help="JSONL file of prompts, in place of the built-in eight.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="float32 demands equality; half precisions allow near-ties.")] = "float32",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer, in tokens.")] = 64,
    draft_tokens: DraftTokensOption = "auto",
    near_tie: Annotated[
        float | None, typer.Option("--near-tie", min=0.0, help="Gap in logits that half-precision rounding may explain; by default 0.25.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take the built-in prompts without the chat template.")] = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold decoding against the target itself; exit code 1 if it says anything else."""
    asked = parse_draft_tokens(draft_tokens)
    with working("importing torch"):
        from pard2.engine.audit import NEAR_TIE, audit, demands_equality
        from pard2.engine.engine import Engine

    texts = _read_prompts(prompts)
    with working(f"loading {target}"):
        engine = Engine.from_pretrained(target, choose_draft(target, draft, method), method, dtype, device, asked)
    exact = demands_equality(engine.target)
    tolerance = NEAR_TIE if near_tie is None else near_tie
    rule = "tokens equal to transformers' greedy generate" if exact else f"every token the first choice or within {tolerance} logits of it"
    print_note(f"{len(texts)} prompts, {engine.method}, {dtype}: {rule}, up to {max_new_tokens} tokens each")
    audits = []
    with record_progress("prompts", len(texts), 0) as advance:
        for one in audit(engine, texts, max_new_tokens, tolerance, raw):
            audits.append(one)
            advance(1, one.new_tokens)
    good = sum(one.lossless for one in audits)
    if as_json:
        rows = [dataclasses.asdict(one) | {"lossless": one.lossless} for one in audits]
        head = {"lossless": good == len(audits), "method": engine.method, "dtype": dtype, "near_tie": None if exact else tolerance}
        typer.echo(json.dumps(head | {"prompts": rows}))
    else:
        _print_table(audits)
        verdict = "lossless" if good == len(audits) else "NOT lossless"
        typer.echo(f"{verdict}: {good} of {len(audits)} prompts ({engine.method}, {dtype}: {rule})")
    if good < len(audits):
        raise typer.Exit(NOT_LOSSLESS)


def _read_prompts(file: Path | None) -> "list[Prompt]":
    from pard2.data.records import read_records, up_to_user

    if file is None:
        return list(PROMPTS)
    records = read_records(file)
    for record in records:
        if not up_to_user(record):
            raise Pard2Error(f"--prompts {file}: record {record['id']} has no user message")
    return [up_to_user(record) for record in records]


def _print_table(audits: "list[PromptAudit]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("#", "prompt", "new", "tokens/cycle", "near-ties", "largest gap", "differs at")
    for number, one in enumerate(audits, 1):
        where = "none" if one.first_difference is None else f"[red]token {one.first_difference}[/]"
        numbers = (number, one.prompt_tokens, one.new_tokens, f"{one.acceptance_length:.2f}", one.near_ties, f"{one.largest_gap:.3f}")
        table.add_row(*map(str, numbers), where)
    Console().print(table)
