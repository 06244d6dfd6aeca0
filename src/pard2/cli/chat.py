"""`pard2 chat`: a conversation with the target, answered as fast as its draft allows."""

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pard2.cli.console import print_error, print_note, working
from pard2.cli.conversation import Conversation
from pard2.cli.flags import Flags, with_records
from pard2.cli.keyboard import QUOTES, Turns, open_turns
from pard2.cli.options import Models, SystemOption
from pard2.cli.template_args import TemplateArgOption, check_template_args, parse_template_args
from pard2.data.arguments import to_prompt
from pard2.engine.options import NGRAM_OPTIONS, EngineOptions
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.terminal import make_console

if TYPE_CHECKING:
    from pard2.engine.engine import Engine
    from pard2.engine.statistics import Step

_HELP = f"""\
/system TEXT     what the model is told first; without TEXT, nothing
/regen           answer the last question again
/set NAME VALUE  temperature, top_p, max_tokens, seed, ..; alone: shows all
/save FILE       write the conversation as JSONL, which --prompts reads
/stats           speed and acceptance so far
/reset           forget the conversation
/exit            leave, as Ctrl-D does, or Ctrl-C twice
{QUOTES}              begins and ends a turn of several lines; a paste is one turn
Ctrl-C           stops an answer, or clears the line
A line that begins with a space is no command."""


@with_records
def chat(
    models: Models,
    params: Annotated[SamplingParams, Flags("max_tokens", "temperature", "top_p", "seed", max_tokens=512)],
    options: Annotated[EngineOptions, Flags("method", "draft_tokens", "tree", "tree_top_k", *NGRAM_OPTIONS, "cache_tokens", "cuda_graphs")],
    system: SystemOption = None,
    template_arguments: TemplateArgOption = None,
) -> None:
    """Talk with the target; what its draft proposed is green.

    Without a terminal, each line of standard input is a turn.
    """
    arguments = parse_template_args(template_arguments)
    turns = open_turns()
    with turns.unseen():
        engine = _load(models, dataclasses.replace(options, max_batch=1), arguments)
    print_note(f"{models.target}, {engine.method}", "/help shows the commands; Ctrl-C stops an answer, Ctrl-D ends the conversation")
    Chat(engine, Conversation(params=params, arguments=arguments, system=system), turns).run()


def _load(models: Models, options: EngineOptions, arguments: dict[str, Any]) -> "Engine":
    """The engine, ready to answer at once."""
    engine = models.load(options)
    if engine.target.tokenizer is None or engine.target.tokenizer.chat_template is None:
        raise Pard2Error(f"{models.target!r} has no chat template; continue a text with `pard2 generate --raw`")
    check_template_args(engine.target, engine.draft, arguments, [{"chat_template_kwargs": arguments}])
    # The first pass imports and compiles: no answer should wait for that, and Ctrl-C in an import ends all.
    with working("warming up"):
        list(engine.generate([to_prompt({"messages": [{"role": "user", "content": "Hello"}]}, arguments)], SamplingParams(max_tokens=4)))
    return engine


class Chat:
    """Lets engine and user take turns."""

    def __init__(self, engine: "Engine", talk: Conversation, turns: Turns) -> None:
        self._engine, self._talk, self._turns = engine, talk, turns
        self._console = make_console(soft_wrap=True)

    def run(self) -> None:
        """Until the user has no more to say; what goes wrong with a turn does not end it."""
        while (said := self._turns.listen()) is not None:
            try:
                if said.startswith("/") and "\n" not in said:
                    if not self._obey(said):
                        break
                elif said.strip():
                    self._answer(said.strip())
            except Pard2Error as error:
                print_error(str(error))

    def _obey(self, command: str) -> bool:
        """Do what a command says; False for leaving."""
        name, _, words = command.partition(" ")
        words = words.strip()
        match name.rstrip():
            case "/exit":
                return False
            case "/system":
                self._talk.system = words or None
                print_note("the model is told so first" if words else "the model is told nothing first")
            case "/regen":
                self._regenerate()
            case "/set":
                print_note(self._talk.set(words))
            case "/save":
                print_note(self._talk.save(words))
            case "/stats":
                print_note(self._talk.told())
            case "/reset":
                self._talk.turns.clear()
                print_note("forgotten")
            case "/help":
                print_note(*_HELP.splitlines())
            case _:
                raise Pard2Error(f"there is no command {name}; /help shows them, and a line that begins with a space is none")
        return True

    def _regenerate(self) -> None:
        before = list(self._talk.turns)
        question = self._talk.take_back()
        if self._talk.params.greedy:
            print_note("at temperature 0 an answer stays the same; /set temperature 0.8 varies it")
        try:
            self._answer(question)
        finally:
            if len(self._talk.turns) < len(before):  # there is no new answer
                self._talk.turns = before

    def _answer(self, question: str) -> None:
        """Stream an answer, and remember what of it has been said: Ctrl-C ends it early."""
        from pard2.engine.statistics import Stats

        record = self._talk.record()
        steps: list[Step] = []
        prompt = to_prompt(record | {"messages": [*record["messages"], {"role": "user", "content": question}]})
        try:
            # Closed on Ctrl-C, which cancels the rest.
            with self._turns.unseen(), closing(self._engine.stream(prompt, self._talk.params)) as stream:
                self._show(stream, steps)
        except KeyboardInterrupt:
            pass  # what has been said stands
        except Pard2Error as error:  # too long a conversation, say: the next one may fit
            raise Pard2Error(f"{error}; /reset forgets the conversation") from None
        if not steps:
            print_note("stopped before the first word; the question is forgotten")
            return
        self._console.print()
        stats, ended = Stats.of(steps), steps[-1].finish_reason or "stopped"
        print_note(f"{ended}; {stats.tokens_per_second:.1f} tokens/s, {stats.acceptance_length:.2f} tokens a cycle" if stats.cycles else ended)
        self._talk.add(question, "".join(step.text or "" for step in steps), stats)

    def _show(self, stream: "Iterator[Step]", steps: "list[Step]") -> None:
        """Show an answer as it is made; its steps are appended to the list."""
        from pard2.cli.colours import ColouredText
        from pard2.cli.word_wrap import WordWrap

        tokenizer = self._engine.target.tokenizer
        assert tokenizer is not None
        coloured, wrap = ColouredText(tokenizer), WordWrap(self._console.width)
        with working("reading"):
            first = [*islice(stream, 1)]
        try:
            for step in chain(first, stream):
                steps.append(step)
                if self._console.is_terminal:
                    self._console.print(wrap.add(coloured.add(step)), end="")
                else:
                    typer.echo(step.text, nl=False)
        finally:
            if self._console.is_terminal:
                self._console.print(wrap.end(), end="")
