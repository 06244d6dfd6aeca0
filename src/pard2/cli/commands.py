"""The command `pard2`: its subcommands, and what every one of them does with errors and Ctrl-C.

A command is imported when it is asked for, and imports what it needs when it runs.
"""

import contextlib
import errno
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from pard2 import __version__
from pard2.cli import interrupts
from pard2.cli.examples import EXAMPLES
from pard2.errors import BAD_INPUT, Pard2Error, Pard2Warning, first_line

COMMANDS = {
    "demo": "Four prompts with and without the embedded draft.",
    "generate": "Answer prompts: the target's own text, faster.",
    "chat": "Talk with the target; what its draft proposed is green.",
    "serve": "Serve OpenAI's API, faster by a draft.",
    "train": "Train a draft, or go on with a run that was stopped.",
    "verify": "Check that decoding says what the target itself says.",
    "bench": "Measure how much faster than plain decoding it is.",
    "bench compare": "Say what differs between two results beyond chance.",
    "report": "Show results of bench as a page with pictures.",
    "predict": "Predict the speed of other draft lengths, batch sizes and targets.",
    "draft": "Make drafts, and explain them.",
    "export": "Write a draft as other engines load it.",
    "card": "Write the card of a draft, for whoever is given it.",
    "data": "Make training data, and look at it.",
    "env": "Show what decodes here, and how fast.",
}


@contextmanager
def _told() -> Iterator[None]:
    """A user's mistake, and what the machine refuses, become one line; a bug keeps its traceback."""
    try:
        yield
        return
    except Pard2Error as error:
        message, code = str(error), BAD_INPUT
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads on; typer ends it in silence
            raise
        message, code = f"{error.strerror or first_line(error)}{f': {error.filename}' if error.filename else ''}", BAD_INPUT
    except (MemoryError, RecursionError) as error:
        message, code = "the memory is full" if isinstance(error, MemoryError) else "the input is nested too deeply", BAD_INPUT
    except (KeyboardInterrupt, ImportError) as error:
        if isinstance(error, ImportError) and not interrupts.seen:  # else it is what an import made of Ctrl-C
            raise
        message, code = "interrupted", interrupts.INTERRUPTED
    from pard2.cli.console import print_error

    with contextlib.suppress(OSError):  # standard error may be full, too
        print_error(message)
    raise typer.Exit(code)


@contextmanager
def _refused() -> Iterator[None]:
    """What typer says of a wrong command line, in several lines, becomes a `Pard2Error`."""
    try:
        yield
    except Exception as error:
        kind, found = type(error).__name__, cast(Any, error)  # by its name: newer versions of typer hold a copy of click
        if kind == "NoSuchOption":
            from pard2.cli.hints import no_such_option

            raise no_such_option(found.option_name, found.possibilities or (), found.ctx.command.params, found.ctx.command_path) from None
        if kind == "NoArgsIsHelpError" or not hasattr(error, "format_message"):
            raise
        message = found.format_message().rstrip(".")
        raise Pard2Error(message[:1].lower() + message[1:]) from None


def show_warnings() -> None:
    """Our own warnings become notes of a line, told once among the processes of a run."""
    warnings.simplefilter("always" if os.environ.get("RANK", "0") == "0" else "ignore", Pard2Warning)
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if category is not Pard2Warning:
            return usual(message, category, *place)
        from pard2.cli.console import print_note

        print_note(f"note: {message}")

    warnings.showwarning = show  # type: ignore[assignment]  # it is called with places alone


_PLAIN = {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH", "file": "PATH"}


class _Common:
    """Of every command and group: help without names of Python types, hints for options of other programs."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **more: Any) -> Any:
        with _refused():
            return super().make_context(info_name, args, parent, **more)  # type: ignore[misc]

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for one in params:
            if not hasattr(one, "display_type"):  # older versions of typer show no types of Python
                continue
            if one.param_type_name == "argument":
                one.display_type_rich = lambda ctx: None  # its name says it
            elif one.metavar is None and not one.is_flag:
                kind = re.sub(r"^<(?:list\[)?|\]?>$| range", "", one.display_type(ctx))
                one.metavar = _PLAIN.get(kind, kind)
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Plain: boxes leave too little of 80 columns for words, and what draws them takes long to import."""
        self.format_usage(ctx, formatter)  # type: ignore[attr-defined]
        self.format_help_text(ctx, formatter)  # type: ignore[attr-defined]
        self.format_options(ctx, formatter)
        examples = EXAMPLES.get(ctx.command_path.partition(" ")[2], ())
        if examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"{' ' * formatter.current_indent}{example}\n" for example in examples))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            group = getattr(one, "rich_help_panel", None) or f"{one.param_type_name.title()}s"
            if record := one.get_help_record(ctx):
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)


class _Group(_Common, TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with _refused():
            return super().resolve_command(ctx, args)


class _Command(_Common, TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        from pard2.cli.flags import speak_flags_of

        speak_flags_of(self.params)
        return super().invoke(ctx)


class _Commands(_Group):
    """The subcommands, each imported when it is asked for; to name them takes no import."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **more: Any) -> Any:
        with _told():  # which prints --help and --version
            for word in args:
                if word.encode(errors="replace").decode() != word:  # neither a tokenizer nor a file of answers takes it
                    raise Pard2Error(f"the argument {word!r} is not UTF-8 text")
            return super().make_context(info_name, args, parent, **more)

    def invoke(self, ctx: Any) -> Any:
        with _told():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if " " not in name]  # a shell completes a word

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        two = " ".join(args[:2])  # of a command that has another one below its name
        return super().resolve_command(ctx, [two, *args[2:]] if two in COMMANDS else args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and cmd_name in COMMANDS:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(COMMANDS.items())


def _load(name: str) -> Any:
    """`pard2.cli.<last word of the name>` is one command, the function of that name, or a group of them, its
    `app`.
    """
    last = name.rpartition(" ")[2]
    module = import_module(f"pard2.cli.{last}")
    group: typer.Typer | None = getattr(module, "app", None)
    if group is None:
        group = typer.Typer()
        group.command(name)(getattr(module, last))
    group._add_completion, group.info.cls = False, _Group
    for command in group.registered_commands:
        command.cls = _Command
    return typer.main.get_command(group)


app = typer.Typer(
    cls=_Commands,
    help="Train PARD-2 drafts, decode losslessly with them, measure them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pard2 {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version.")) -> None:
    pass
