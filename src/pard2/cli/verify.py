"""`pard2 verify`: is decoding lossless here, with these weights, on this machine?"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pard2.cli.console import print_note, record_progress, working
from pard2.cli.options import (
    DeviceOption,
    DraftOption,
    DraftSamplingOption,
    JsonOption,
    MethodOption,
    TargetOption,
    VerificationOption,
    choose_draft,
    parse_draft_tokens,
    read_prompts,
)
from pard2.cli.template_args import TemplateArgOption, apply_template_args, check_template_args, parse_template_args
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from pard2.engine.methods import DraftTokens
    from pard2.engine.prompts import Prompt
    from pard2.verify.distribution import DistributionTest
    from pard2.verify.greedy import PromptAudit

NOT_LOSSLESS, NOT_TESTED = 1, 3

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
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest greedy answer, in tokens.")] = 64,
    draft_tokens: Annotated[
        str,
        typer.Option("--draft-tokens", metavar="K|full|auto", help="Tokens proposed in a cycle; auto may leave nothing to judge."),
    ] = "full",
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Sequences decoded together; 1 leaves that part out.")] = 8,
    near_tie: Annotated[
        float | None, typer.Option("--near-tie", min=0.0, help="Gap in logits that half-precision rounding may explain; by default 0.25.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=0, max=10**5, help="Completions drawn of each prompt to test sampling; 0 leaves it out.")
    ] = 64,
    sample_tokens: Annotated[int, typer.Option("--sample-tokens", metavar="N", min=1, max=4096, help="Tokens of each drawn completion.")] = 12,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the test of sampling.")] = 1.0,
    draft_sampling: DraftSamplingOption = "greedy",
    verification: VerificationOption = "token",
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the drawn completions.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Take the built-in prompts without the chat template.")] = False,
    template_arg: TemplateArgOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold decoding, greedy and sampled, against the target itself; exit code 1 if it says anything else, 3 if too little was proposed to tell."""
    asked: DraftTokens = "full" if draft_tokens == "full" else parse_draft_tokens(draft_tokens)
    arguments = parse_template_args(template_arg)
    with working("importing torch"):
        from pard2.engine.engine import Engine
        from pard2.engine.prompts import encode_prompt
        from pard2.engine.sampling import SamplingParams
        from pard2.verify.distribution import FEWEST_SAMPLES, draw, judge
        from pard2.verify.greedy import NEAR_TIE, audit, demands_equality

    if 0 < samples < FEWEST_SAMPLES:
        raise Pard2Error(f"--samples {samples} are too few to tell anything; give at least {FEWEST_SAMPLES}, or 0 for no test of sampling")
    if samples and SamplingParams(temperature=temperature).greedy:
        raise Pard2Error("--temperature 0 is greedy, which is tested anyway; give a higher one, or --samples 0 for no test of sampling")
    texts: list[Prompt] = apply_template_args(PROMPTS, arguments, raw) if prompts is None else [*read_prompts(prompts, arguments)]
    with working(f"loading {target}"):
        engine = Engine.from_pretrained(
            target,
            choose_draft(target, draft, method),
            method,
            dtype,
            device,
            asked,
            max_batch=batch_size,
            draft_sampling=draft_sampling,  # type: ignore[arg-type]  # the engine checks the words
            verification=verification,  # type: ignore[arg-type]
        )
    check_template_args(engine.target, engine.draft, arguments, [] if raw else texts)
    encoded = [encode_prompt(engine.target, text, raw) for text in texts]
    exact = demands_equality(engine.target)
    tolerance = NEAR_TIE if near_tie is None else near_tie
    together = batch_size > 1 and len(encoded) > 1
    rounds = 2 if together else 1
    rule = "tokens equal to transformers' greedy generate" if exact else f"every token the first choice or within {tolerance} logits of it"
    print_note(_plan(engine.method, dtype, rule, len(encoded), rounds, max_new_tokens, samples, sample_tokens, exact))

    audits, draws = [], []
    with record_progress("greedy", rounds * len(encoded), 0) as advance:
        for one in audit(engine, encoded, max_new_tokens, tolerance, together):
            audits.append(one)
            advance(1, one.new_tokens)
    if samples:
        with record_progress("sampling", len(encoded), 0) as advance:
            for number, ids in enumerate(encoded):
                draws.append(draw(engine, ids, samples, sample_tokens, temperature, seed + number * samples))
                advance(1, len(draws[-1].ranks))
    sampling = judge(draws) if samples else None
    right = all(one.lossless for one in audits) and (sampling is None or sampling.fits)
    lacking = _lacking(engine.method, audits, sampling)
    lossless = right and not any(lacking.values())
    if as_json:
        tested = {part: lacking.get(part) == "" for part in ("alone", "together", "sampling")}
        head = {"lossless": lossless, "tested": tested, "method": engine.method, "dtype": dtype, "near_tie": None if exact else tolerance}
        rules = {"draft_sampling": draft_sampling, "verification": verification, "temperature": temperature, "seed": seed}
        about = None if sampling is None else dataclasses.asdict(sampling) | {"lossless": sampling.fits and tested["sampling"]} | rules
        rows = [dataclasses.asdict(one) | {"lossless": one.lossless} for one in audits]
        typer.echo(json.dumps(head | {"batch_size": batch_size, "draft_tokens": engine.draft_tokens, "prompts": rows, "sampling": about}))
    else:
        _print_table(audits, exact)
        untold = f"too little to tell, though nothing is wrong so far ({'; '.join(filter(None, lacking.values()))})"
        verdict = "lossless" if lossless else untold if right else "NOT lossless"
        found = f"{_greedy_verdict(audits, rule)}; {_sampling_verdict(sampling)}; {_proposals(engine.method, audits, sampling)}"
        typer.echo(f"{verdict}: {found} ({engine.method}, {dtype})")
    if not lossless:
        raise typer.Exit(NOT_TESTED if right else NOT_LOSSLESS)


def _lacking(method: str, audits: "list[PromptAudit]", sampling: "DistributionTest | None") -> dict[str, str]:
    """For each part that ran what it lacks to call decoding lossless: a line, empty where it lacks nothing."""
    from pard2.verify.greedy import FEWEST_ACCEPTED

    accepted = Counter({"alone": 0})
    for one in audits:
        accepted["together" if one.together else "alone"] += one.accepted
    accepted.update({} if sampling is None else {"sampling": sampling.accepted})
    lacking = dict.fromkeys(accepted, "")
    for part, count in accepted.items():
        if count < FEWEST_ACCEPTED and method != "ar":  # which proposes nothing
            more = "--samples or --sample-tokens" if part == "sampling" else "--prompts or --max-new-tokens"
            lacking[part] = f"{part}: only {count} proposals were accepted, {FEWEST_ACCEPTED} are needed; give more {more}, or a better draft"
    if sampling is not None and not sampling.prefixes_freedom:
        lacking["sampling"] = "sampling: too few completions share a beginning to count what follows it; give more --samples"
    return lacking


def _proposals(method: str, audits: "list[PromptAudit]", sampling: "DistributionTest | None") -> str:
    if method == "ar":
        return "nothing was proposed, ar is plain decoding"
    proposed, judged, accepted = (sum(getattr(one, name) for one in [*audits, sampling] if one) for name in ("proposed", "judged", "accepted"))
    return f"{proposed} tokens were proposed, {judged} judged, {accepted} accepted"


def _plan(method: str, dtype: str, rule: str, prompts: int, rounds: int, max_new_tokens: int, samples: int, sample_tokens: int, exact: bool) -> str:
    """What will be done, and the tokens that it costs."""
    greedy = prompts * rounds * max_new_tokens
    reference = f" and {prompts * max_new_tokens} by transformers" if exact else " and as many read once more"
    lines = [f"{method}, {dtype}, {prompts} prompts. Greedy{', alone and together' if rounds > 1 else ''}: {rule}; up to {greedy} tokens{reference}."]
    if samples:
        lines.append(f"Sampling: {samples} completions of each, {prompts * samples * sample_tokens} tokens, decoded and read once more.")
    return "\n".join(lines)


def _greedy_verdict(audits: "list[PromptAudit]", rule: str) -> str:
    parts = []
    for together, how in ((False, "alone"), (True, "together")):
        some = [one.lossless for one in audits if one.together == together]
        if some:
            parts.append(f"{sum(some)} of {len(some)} prompts {how}")
    return f"{', '.join(parts)}: {rule}"


def _sampling_verdict(test: "DistributionTest | None") -> str:
    if test is None:
        return "sampling not tested"
    fits = "fit" if test.fits else "do NOT fit"
    return f"{test.tokens} sampled tokens {fits} the target's distribution (p = {test.chance:.2g}, the bar is {test.false_alarm:g})"


def _print_table(audits: "list[PromptAudit]", exact: bool) -> None:
    """At most 80 columns wide. exact: equality was demanded, so there are no near-ties to show."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    ties = () if exact else ("near-\nties", "largest\ngap")
    columns = ("#", "decoded", "prompt", "new", "proposed", "accepted", "tokens/\ncycle", *ties, "differs\nat")
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1 if exact else 0), pad_edge=False)
    alone = sum(not one.together for one in audits)
    for number, one in enumerate(audits):
        where = "none" if one.first_difference is None else f"[red]token {one.first_difference}[/]"
        numbers = [one.prompt_tokens, one.new_tokens, one.proposed, one.accepted, f"{one.acceptance_length:.2f}"]
        numbers += [] if exact else [one.near_ties, f"{one.largest_gap:.3f}"]
        table.add_row(str(number % alone + 1), "together" if one.together else "alone", *map(str, numbers), where)
    Console().print(table)
