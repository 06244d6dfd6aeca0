"""`pard2 chat`: a conversation with the target, answered as fast as its draft allows."""

import dataclasses
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pard2.cli.console import print_error, print_note
from pard2.cli.flags import Flags, with_records
from pard2.cli.options import Models
from pard2.cli.template_args import TemplateArgOption, check_template_args, parse_template_args
from pard2.data.arguments import to_prompt
from pard2.engine.options import NGRAM_OPTIONS, EngineOptions
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from rich.console import Console

    from pard2.data.records import Message
    from pard2.engine.engine import Engine
    from pard2.engine.prompts import Prompt

_HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


@with_records
def chat(
    models: Models,
    params: Annotated[SamplingParams, Flags("max_tokens", "temperature", "top_p", "seed", max_tokens=512)],
    options: Annotated[EngineOptions, Flags("method", "draft_tokens", "tree", *NGRAM_OPTIONS, "cache_tokens", "cuda_graphs")],
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="What the model is told before the conversation.")] = None,
    template_arguments: TemplateArgOption = None,
) -> None:
    """Talk with the target; what its draft proposed is green.

    Without a terminal, each line of standard input is a turn.
    """
    arguments = parse_template_args(template_arguments)
    engine = models.load(dataclasses.replace(options, max_batch=1))
    if engine.target.tokenizer is None or engine.target.tokenizer.chat_template is None:
        raise Pard2Error(f"{models.target!r} has no chat template; continue a text with `pard2 generate --raw`")
    check_template_args(engine.target, engine.draft, arguments, [{"chat_template_kwargs": arguments}])
    print_note(f"{models.target}, {engine.method}; {_HELP}")
    _converse(engine, params, system, arguments)


def _converse(engine: "Engine", params: SamplingParams, system: str | None, arguments: dict[str, Any]) -> None:
    """Answer turn by turn, until the user has no more to say."""
    from rich.console import Console

    opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    console = Console(highlight=False, soft_wrap=True)
    messages = list(opening)
    while (said := _listen()) is not None:
        if said == "/exit":
            break
        if said == "/reset":
            messages = list(opening)
            print_note("forgotten")
        elif said.startswith("/"):
            print_note(_HELP)
        elif said:
            try:
                answer = _answer(engine, to_prompt({"messages": [*messages, {"role": "user", "content": said}]}, arguments), params, console)
            except Pard2Error as error:  # too long a conversation, say: the next one may fit
                print_error(f"{error}; /reset forgets the conversation")
                continue
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]


def _listen() -> str | None:
    """What the user says next; None at the end."""
    try:
        if sys.stdin.isatty():
            import readline  # noqa: F401 - gives input() its line editing and history

            return input("> ").strip()
        line = sys.stdin.readline()
        return line.strip() if line else None
    except EOFError:
        return None


def _answer(engine: "Engine", prompt: "Prompt", params: SamplingParams, console: "Console") -> str:
    """Stream an answer, and return what of it has been said: Ctrl-C ends it early."""
    from pard2.cli.colours import ColouredText
    from pard2.engine.statistics import Stats

    coloured, steps, said, ended = ColouredText(engine.target.tokenizer), [], "", "stopped"
    try:
        # Closed on Ctrl-C, which cancels the rest.
        with closing(engine.stream(prompt, params)) as stream:
            for step in stream:
                steps.append(step)
                piece = coloured.add(step)
                said += step.text or ""
                if console.is_terminal:
                    console.print(piece, end="")
                else:
                    typer.echo(step.text, nl=False)
                ended = step.finish_reason or ended
    except KeyboardInterrupt:
        pass  # what has been said stands
    console.print()
    stats = Stats.of(steps)
    print_note(f"{ended}; {stats.tokens_per_second:.1f} tokens/s, {stats.acceptance_length:.2f} tokens a cycle")
    return said
