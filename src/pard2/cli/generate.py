"""`pard2 generate`: prompts in, the target's own answers out, and how they came about."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pard2.cli.console import answer_text, on_terminal, print_note, record_progress, speed, working
from pard2.cli.flags import with_records
from pard2.cli.options import Models, commits_of
from pard2.cli.question import Question
from pard2.cli.template_args import check_template_args, parse_template_args
from pard2.engine.options import EngineOptions
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.units import counted

if TYPE_CHECKING:
    from pard2.engine.engine import Engine
    from pard2.engine.prompts import Prompt
    from pard2.engine.request import Completion
    from pard2.engine.statistics import Step


@with_records
def generate(
    models: Models,
    question: Question,
    params: SamplingParams,
    options: EngineOptions,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it is made; on a terminal this is so anyway.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there: a line for each answer.")] = False,
) -> None:
    """Answer prompts: the target's own text, faster."""
    arguments = parse_template_args(question.template_arguments)
    texts, raw = question.read(arguments), question.raw
    total = len(texts) * params.n
    if stream and (as_json or total > 1):
        raise Pard2Error("--stream shows the text of one answer as it is made; leave it away with --json, with several prompts, and with --n")
    if params.logprobs is not None and not as_json:
        raise Pard2Error("--logprobs is shown with --json alone; add --json")
    # Fewer answers need no memory for more.
    engine = models.load(dataclasses.replace(options, max_batch=min(options.max_batch, total)))
    check_template_args(engine.target, engine.draft, arguments, [] if raw else texts)
    if total > 1:
        _answer_all(engine, texts, params, raw, as_json)
    else:
        _answer_one(engine, texts[0], params, raw, as_json, live=stream or (on_terminal() and not as_json))


def _answer_one(engine: "Engine", prompt: "Prompt", params: SamplingParams, raw: bool, as_json: bool, live: bool) -> None:
    """live: print the text as it is made."""
    if live:
        request = engine.submit(prompt, params, raw)
        steps: list[Step] = []
        with working("reading the prompt"):
            while not steps and not request.done:
                engine.step()
                steps = [*request.take_steps()]
        while True:
            for step in steps:
                typer.echo(answer_text(step.text), nl=False)
            if request.done:
                break
            engine.step()
            steps = [*request.take_steps()]
        typer.echo()
        (completion,) = request.completions()
    else:
        with working("generating", lambda: engine.totals):
            (completion,) = engine.generate([prompt], params, raw)
    if completion.error is not None:
        raise Pard2Error(completion.error)
    if as_json:
        typer.echo(answer_text(json.dumps(_as_json(completion, engine), ensure_ascii=False)))
    elif not live:
        typer.echo(answer_text(completion.text or ""))
    stats, made = completion.stats, counted(len(completion.token_ids), "token")
    print_note(
        f"{completion.method}: {made} ({completion.finish_reason}) after a prompt of {completion.prompt_tokens}; "
        f"{counted(stats.cycles, 'cycle')} of {stats.acceptance_length:.2f} tokens{speed(stats.tokens_per_second)}"
    )


def _answer_all(engine: "Engine", prompts: "list[Prompt]", params: SamplingParams, raw: bool, as_json: bool) -> None:
    """Answers in the prompts' order, each as soon as it and all before it are there; what failed is told at
    the end.
    """
    total, tokens, failures = len(prompts) * params.n, 0, []
    print_note(f"{counted(len(prompts), 'prompt')}, {counted(total, 'answer')} of up to {params.max_tokens} tokens")
    with record_progress("answers", total, 0, lambda: engine.totals) as advance:
        for count, completion in enumerate(engine.completions(prompts, params, raw)):
            place = {"prompt": count // params.n, "index": completion.index}
            if completion.error is not None:
                failures.append(f"prompt {place['prompt']}: {completion.error}")
            # Not typer.echo, which on a terminal writes past the bar's console and into the bar.
            if as_json:
                print(answer_text(json.dumps(place | _as_json(completion, engine), ensure_ascii=False)), flush=True)
            elif completion.error is None:
                print(f"--- prompt {place['prompt']}, answer {completion.index} ---\n{answer_text(completion.text or '')}", flush=True)
            tokens += len(completion.token_ids)
            advance(1, len(completion.token_ids))
    totals = engine.totals
    print_note(
        f"{engine.method}: {counted(tokens, 'token')} in {counted(total - len(failures), 'answer')}, {counted(totals.cycles, 'cycle')}"
        f"{speed(totals.tokens_per_second)}"
    )
    if failures:
        raise Pard2Error(f"{len(failures)} of {total} answers failed; {failures[0]}")


def _as_json(completion: "Completion", engine: "Engine") -> dict[str, Any]:
    shown = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "method": completion.method,
        "commits": commits_of(engine.target, engine.draft),
        "stats": completion.stats.as_dict(),
    }
    if completion.logprobs is not None:
        shown["logprobs"] = [dataclasses.asdict(one) for one in completion.logprobs]
    if completion.error is not None:
        shown["error"] = completion.error
    return shown
