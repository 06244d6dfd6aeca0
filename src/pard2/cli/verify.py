"""`pard2 verify`: is decoding lossless here, with these weights, on this machine?"""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from pard2.cli.console import print_note, print_words, record_progress, working
from pard2.cli.flags import Flags, with_records
from pard2.cli.options import JsonOption, Models, commits_of, read_prompts
from pard2.cli.output import output_console
from pard2.cli.template_args import TemplateArgOption, apply_template_args, check_template_args, parse_template_args
from pard2.engine.methods import METHODS
from pard2.engine.options import NGRAM_OPTIONS, EngineOptions
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.verify import FEWEST_SAMPLES

if TYPE_CHECKING:
    from pard2.engine.engine import Engine
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


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What is decoded, and how much of it."""

    prompts: Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help="JSONL file of prompts, in place of the built-in eight.")] = None
    raw: Annotated[bool, typer.Option("--raw", help="Take the built-in prompts without the chat template.")] = False
    template_arguments: TemplateArgOption = None
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest greedy answer, in tokens.")] = 64
    near_tie: Annotated[
        float | None, typer.Option("--near-tie", min=0.0, help="Gap in logits that half-precision rounding may explain; by default 0.25.")
    ] = None
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=0, max=10**5, help="Completions drawn of each prompt to test sampling; 0 leaves it out.")
    ] = 64
    sample_tokens: Annotated[int, typer.Option("--sample-tokens", metavar="N", min=1, max=4096, help="Tokens of each drawn completion.")] = 12
    temperature: Annotated[float, typer.Option("--temperature", help="Of the test of sampling.")] = 1.0
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the drawn completions.")] = 0

    def read(self, arguments: dict[str, Any]) -> "list[Prompt]":
        """The prompts. Raises `Pard2Error` for them, and for a test of sampling that tests nothing."""
        if 0 < self.samples < FEWEST_SAMPLES:
            raise Pard2Error(f"--samples {self.samples} are too few to tell anything; give at least {FEWEST_SAMPLES}, or 0 for no test of sampling")
        if self.samples and SamplingParams(temperature=self.temperature).greedy:
            raise Pard2Error("--temperature 0 is greedy, which is tested anyway; give a higher one, or --samples 0 for no test of sampling")
        return apply_template_args(PROMPTS, arguments, self.raw) if self.prompts is None else [*read_prompts(self.prompts, arguments)]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found, and how it is told.

    rule: what was demanded of greedy text, in words.
    near_tie: the gap in logits that was let pass; None where equality was demanded.
    """

    method: str
    dtype: str
    weights: str
    rule: str
    near_tie: float | None
    audits: "list[PromptAudit]"
    sampling: "DistributionTest | None"

    @property
    def right(self) -> bool:
        """Whether nothing was found to be wrong."""
        return all(one.lossless for one in self.audits) and (self.sampling is None or self.sampling.fits)

    @property
    def lossless(self) -> bool:
        return self.right and not any(self.lacking.values())

    @property
    def lacking(self) -> dict[str, str]:
        """For each part that ran, a line: what it lacks to call decoding lossless;
        empty where it lacks nothing."""
        from pard2.verify.greedy import FEWEST_ACCEPTED

        accepted = Counter({"alone": 0})
        for one in self.audits:
            accepted["together" if one.together else "alone"] += one.accepted
        accepted.update({} if self.sampling is None else {"sampling": self.sampling.accepted})
        lacking = dict.fromkeys(accepted, "")
        for part, count in accepted.items():
            if count < FEWEST_ACCEPTED and METHODS[self.method].proposes:
                more = "--samples or --sample-tokens" if part == "sampling" else "--prompts or --max-new-tokens"
                lacking[part] = f"{part}: only {count} proposals were accepted, {FEWEST_ACCEPTED} are needed; give more {more}, or a better draft"
        if self.sampling is not None and not self.sampling.prefixes_freedom:
            lacking["sampling"] = "sampling: too few completions share a beginning to count what follows it; give more --samples"
        return lacking

    def line(self) -> str:
        untold = f"too little to tell, though nothing is wrong so far ({'; '.join(filter(None, self.lacking.values()))})"
        verdict = "lossless" if self.lossless else untold if self.right else "NOT lossless"
        found = f"{_greedy_verdict(self.audits, self.rule)}; {_sampling_verdict(self.sampling)}; {self._proposals()}"
        what = self.dtype if self.weights == "auto" else f"{self.dtype}, {self.weights} weights"
        return f"{verdict}: {found} ({self.method}, {what})"

    def _proposals(self) -> str:
        if not METHODS[self.method].proposes:
            return f"nothing was proposed, {self.method} is plain decoding"
        parts = [*self.audits, self.sampling]
        proposed, judged, accepted = (sum(getattr(one, name) for one in parts if one) for name in ("proposed", "judged", "accepted"))
        return f"{proposed} tokens were proposed, {judged} judged, {accepted} accepted"

    def as_dict(self, checks: Checks, options: EngineOptions, draft_tokens: int) -> dict[str, Any]:
        """draft_tokens: most that were proposed in a cycle."""
        tested = {part: self.lacking.get(part) == "" for part in ("alone", "together", "sampling")}
        rules: dict[str, Any] = {"draft_sampling": options.draft_sampling, "verification": options.verification}
        rules |= {"temperature": checks.temperature, "seed": checks.seed}
        sampling = self.sampling and dataclasses.asdict(self.sampling) | {"lossless": self.sampling.fits and tested["sampling"]} | rules
        return {
            "lossless": self.lossless,
            "tested": tested,
            "method": self.method,
            "dtype": self.dtype,
            "weights": self.weights,
            "near_tie": self.near_tie,
            "batch_size": options.max_batch,
            "draft_tokens": draft_tokens,
            "prompts": [dataclasses.asdict(one) | {"lossless": one.lossless} for one in self.audits],
            "sampling": sampling,
        }


@with_records
def verify(
    models: Annotated[Models, Flags(dtype="float32", help={"dtype": "float32 demands equality; half precisions allow near-ties."})],
    checks: Checks,
    options: Annotated[
        EngineOptions,
        Flags(
            *("method", "draft_tokens", "draft_sampling", "verification", "tree", "tree_top_k", *NGRAM_OPTIONS, "max_batch", "cuda_graphs"),
            help={
                "draft_tokens": "Tokens proposed in a cycle; auto may leave nothing to judge.",
                "max_batch": "Sequences decoded together; 1 leaves that part out.",
            },
            draft_tokens="full",
            max_batch=8,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Hold decoding, greedy and sampled, against the target itself; exit code 1 if it says anything else, 3
    if too little was proposed to tell.
    """
    arguments = parse_template_args(checks.template_arguments)
    texts = checks.read(arguments)
    with working("importing torch"):
        from pard2.engine.prompts import encode_prompt
        from pard2.verify.greedy import NEAR_TIE, demands_equality, rows_are_alike

    engine = models.load(options)
    check_template_args(engine.target, engine.draft, arguments, [] if checks.raw else texts)
    encoded = [encode_prompt(engine.target, text, checks.raw) for text in texts]
    exact = demands_equality(engine.target)
    near_tie = NEAR_TIE if checks.near_tie is None else checks.near_tie
    rule = "tokens equal to transformers' greedy generate" if exact else f"every token the first choice or within {near_tie} logits of it"
    rule += ", and equal to plain decoding's" if rows_are_alike(engine.target) else ""
    assert models.dtype is not None
    print_note(*_plan(f"{engine.method}, {models.dtype}", rule, len(encoded), checks, exact, together=options.max_batch > 1 and len(encoded) > 1))
    audits = _audit(engine, encoded, checks.max_new_tokens, near_tie)
    verdict = Verdict(
        method=engine.method,
        dtype=models.dtype,
        weights=models.weights,
        rule=rule,
        near_tie=None if exact else near_tie,
        audits=audits,
        sampling=_sample(engine, encoded, checks) if checks.samples else None,
    )
    if as_json:
        typer.echo(json.dumps(verdict.as_dict(checks, options, engine.draft_tokens) | {"commits": commits_of(engine.target, engine.draft)}))
    else:
        _print_table(audits, exact)
        print_words(output_console(), Text(verdict.line()))
    if not verdict.lossless:
        raise typer.Exit(NOT_TESTED if verdict.right else NOT_LOSSLESS)


def _audit(engine: "Engine", prompts: list[list[int]], max_new_tokens: int, near_tie: float) -> "list[PromptAudit]":
    """Greedy decoding of each prompt alone, and of all of them together where they can be."""
    from pard2.verify.greedy import audit

    together = engine.options.max_batch > 1 and len(prompts) > 1
    audits = []
    with record_progress("greedy", (2 if together else 1) * len(prompts), 0, lambda: engine.totals) as advance:
        for one in audit(engine, prompts, max_new_tokens, near_tie, together):
            audits.append(one)
            advance(1, one.new_tokens)
    return audits


def _sample(engine: "Engine", prompts: list[list[int]], checks: Checks) -> "DistributionTest":
    from pard2.verify.distribution import draw, judge

    draws = []
    with record_progress("sampling", len(prompts), 0, lambda: engine.totals) as advance:
        for number, ids in enumerate(prompts):
            draws.append(draw(engine, ids, checks.samples, checks.sample_tokens, checks.temperature, checks.seed + number * checks.samples))
            advance(1, len(draws[-1].ranks))
    return judge(draws)


def _plan(what: str, rule: str, prompts: int, checks: Checks, exact: bool, together: bool) -> list[str]:
    """What will be done, and the tokens that it costs, in lines."""
    greedy = prompts * (2 if together else 1) * checks.max_new_tokens
    reference = f" and {prompts * checks.max_new_tokens} by transformers" if exact else " and as many read once more"
    lines = [f"{what}, {prompts} prompts. Greedy{', alone and together' if together else ''}: {rule}; up to {greedy} tokens{reference}."]
    if checks.samples:
        drawn = prompts * checks.samples * checks.sample_tokens
        lines.append(f"Sampling: {checks.samples} completions of each, {drawn} tokens, decoded and read once more.")
    return lines


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
    from rich.table import Table

    both, out = any(one.together for one in audits), output_console()
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    ties = () if exact else ("near-\nties", "largest\ngap")
    for title in ("#", *(("decoded",) if both else ()), "prompt", "new", "proposed", "accepted", "tokens/\ncycle", *ties, "differs\nat"):
        table.add_column(title, justify="left" if title == "decoded" else "right")
    alone = sum(not one.together for one in audits)
    for number, one in enumerate(audits):
        where = "none" if one.first_difference is None else f"[red]token {one.first_difference}[/]"
        numbers = [one.prompt_tokens, one.new_tokens, one.proposed, one.accepted, f"{one.acceptance_length:.2f}"]
        numbers += [] if exact else [one.near_ties, f"{one.largest_gap:.3f}"]
        how = (("together" if one.together else "alone"),) if both else ()
        table.add_row(str(number % alone + 1), *how, *map(str, numbers), where)
    if not both:
        out.print("each prompt alone", style="bold")
    out.print(table)
