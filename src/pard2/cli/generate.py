"""`pard2 generate`: prompts in, the target's own answers out, and how they came about."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pard2.cli.console import answer_text, on_terminal, print_note, record_progress, working
from pard2.cli.options import (
    CacheTokensOption,
    DeviceOption,
    DraftOption,
    DraftSamplingOption,
    DraftTokensOption,
    DtypeOption,
    MethodOption,
    PromptsOption,
    TargetOption,
    VerificationOption,
    choose_draft,
    parse_draft_tokens,
    parse_logit_bias,
    read_prompts,
)
from pard2.cli.template_args import TemplateArgOption, apply_template_args, check_template_args, parse_template_args
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from pard2.engine.engine import Engine
    from pard2.engine.prompts import Prompt
    from pard2.engine.request import Completion

_SAMPLING = "Sampling"


def generate(
    target: TargetOption,
    draft: DraftOption = None,
    method: MethodOption = None,
    prompt: Annotated[list[str] | None, typer.Option("-p", "--prompt", help="What to say to the model; may be given several times.")] = None,
    prompts: PromptsOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    template_arg: TemplateArgOption = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Longest answer, in tokens.")] = 128,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text; may be given several times.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of the answer, for measurements.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it is made; on a terminal this is so anyway.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there: a line for each answer.")] = False,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy; higher is more varied.", rich_help_panel=_SAMPLING)] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Sample from so many tokens, the likeliest; 0 is off.", rich_help_panel=_SAMPLING)] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample from the fewest tokens that hold this probability; 1 is off.", rich_help_panel=_SAMPLING)
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Leave out tokens below this share of the likeliest one's probability.", rich_help_panel=_SAMPLING)
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1 against tokens of the prompt and the answer.", rich_help_panel=_SAMPLING)
    ] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option("--presence-penalty", help="-2 to 2, against tokens that the answer holds.", rich_help_panel=_SAMPLING)
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option("--frequency-penalty", help="-2 to 2, for each time that the answer holds a token.", rich_help_panel=_SAMPLING)
    ] = 0.0,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option("--logit-bias", metavar="ID=BIAS", help="-100 to 100, for one token; may be given several times.", rich_help_panel=_SAMPLING),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same text.", rich_help_panel=_SAMPLING)] = None,
    n: Annotated[int, typer.Option("--n", help="Answers to each prompt.", rich_help_panel=_SAMPLING)] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option("--logprobs", metavar="N", help="With --json: the tokens' log-probabilities, and the N likeliest.", rich_help_panel=_SAMPLING),
    ] = None,
    draft_tokens: DraftTokensOption = "auto",
    draft_sampling: DraftSamplingOption = "greedy",
    verification: VerificationOption = "token",
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Answers decoded at once.")] = 16,
    cache_tokens: CacheTokensOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Answer prompts: the target's own text, faster."""
    asked = parse_draft_tokens(draft_tokens)
    params = SamplingParams(
        max_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=parse_logit_bias(logit_bias or []),
        seed=seed,
        n=n,
        stop=stop or (),
        ignore_eos=ignore_eos,
        logprobs=logprobs,
    )
    arguments = parse_template_args(template_arg)
    texts = _prompts(prompt or [], prompts, raw, arguments)
    total = len(texts) * n
    if stream and (as_json or total > 1):
        raise Pard2Error("--stream shows the text of one answer as it is made; leave it away with --json, with several prompts, and with --n")
    if logprobs is not None and not as_json:
        raise Pard2Error("--logprobs is shown with --json alone; add --json")
    with working("importing torch"):
        from pard2.engine.engine import Engine

    with working(f"loading {target}"):
        engine = Engine.from_pretrained(
            target,
            choose_draft(target, draft, method),
            method,
            dtype,
            device,
            asked,
            max_batch=min(batch_size, total),
            cache_tokens=cache_tokens,
            draft_sampling=draft_sampling,  # type: ignore[arg-type]  # the engine checks the words
            verification=verification,  # type: ignore[arg-type]
        )
    check_template_args(engine.target, engine.draft, arguments, [] if raw else texts)
    if total > 1:
        _answer_all(engine, texts, params, raw, as_json)
    else:
        _answer_one(engine, texts[0], params, raw, as_json, live=stream or (on_terminal() and not as_json))


def _prompts(texts: list[str], file: Path | None, raw: bool, arguments: dict[str, Any]) -> "list[Prompt]":
    """The prompts of the command line. Raises `Pard2Error` for none, for an empty one, and for two sources of them."""
    if file is None:
        if not texts:
            raise Pard2Error("there is no prompt; say something with -p, or name a file with --prompts")
        if not all(text.strip() for text in texts):
            raise Pard2Error("the prompt is empty; say something with -p")
        return apply_template_args(texts, arguments, raw)
    if texts:
        raise Pard2Error("-p and --prompts are both given; put all prompts into the file, or leave one of them away")
    if raw:
        raise Pard2Error("--raw continues a text given with -p; the conversations of --prompts need the chat template")
    return [*read_prompts(file, arguments)]


def _answer_one(engine: "Engine", prompt: "Prompt", params: SamplingParams, raw: bool, as_json: bool, live: bool) -> None:
    """live: print the text as it is made."""
    if live:
        request = engine.submit(prompt, params, raw)
        while not request.done:
            engine.step()
            for step in request.take_steps():
                typer.echo(answer_text(step.text), nl=False)
        typer.echo()
        (completion,) = request.completions()
    else:
        with working("generating"):
            (completion,) = engine.generate([prompt], params, raw)
    if completion.error is not None:
        raise Pard2Error(completion.error)
    if as_json:
        typer.echo(answer_text(json.dumps(_as_json(completion), ensure_ascii=False)))
    elif not live:
        typer.echo(answer_text(completion.text or ""))
    stats = completion.stats
    print_note(
        f"{completion.method}: {len(completion.token_ids)} tokens ({completion.finish_reason}) after a prompt of {completion.prompt_tokens}; "
        f"{stats.cycles} cycles of {stats.acceptance_length:.2f} tokens, {stats.tokens_per_second:.1f} tokens/s"
    )


def _answer_all(engine: "Engine", prompts: "list[Prompt]", params: SamplingParams, raw: bool, as_json: bool) -> None:
    """Answers in the prompts' order, each as soon as it and all before it are there; what failed is told at the end."""
    total, tokens, failures = len(prompts) * params.n, 0, []
    print_note(f"{len(prompts)} prompts, {total} answers of up to {params.max_tokens} tokens")
    with record_progress("answers", total, 0) as advance:
        for count, completion in enumerate(engine.generate(prompts, params, raw)):
            place = {"prompt": count // params.n, "index": completion.index}
            if completion.error is not None:
                failures.append(f"prompt {place['prompt']}: {completion.error}")
            # Not typer.echo, which on a terminal writes past the bar's console and into the bar.
            if as_json:
                print(answer_text(json.dumps(place | _as_json(completion), ensure_ascii=False)), flush=True)
            elif completion.error is None:
                print(f"--- prompt {place['prompt']}, answer {completion.index} ---\n{answer_text(completion.text or '')}", flush=True)
            tokens += len(completion.token_ids)
            advance(1, len(completion.token_ids))
    totals = engine.totals
    print_note(
        f"{engine.method}: {tokens} tokens in {total - len(failures)} answers, {totals.cycles} cycles, {totals.tokens_per_second:.1f} tokens/s"
    )
    if failures:
        raise Pard2Error(f"{len(failures)} of {total} answers failed; {failures[0]}")


def _as_json(completion: "Completion") -> dict[str, Any]:
    shown = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "method": completion.method,
        "stats": completion.stats.as_dict(),
    }
    if completion.logprobs is not None:
        shown["logprobs"] = [dataclasses.asdict(one) for one in completion.logprobs]
    if completion.error is not None:
        shown["error"] = completion.error
    return shown
