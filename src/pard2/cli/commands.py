"""The command `pard2`: its subcommands, and what every one of them does with errors and Ctrl-C.

Commands import what they need when they run, so that `pard2 --help` does not wait for torch.
"""

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pard2 import __version__
from pard2.cli import bench, chat, data, demo, draft, generate, interrupts, train, verify
from pard2.cli.console import print_error, print_note
from pard2.cli.flags import speak_flags_of
from pard2.errors import BAD_INPUT, Pard2Error, Pard2Warning, first_line


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
    with contextlib.suppress(OSError):  # standard error may be full, too
        print_error(message)
    raise typer.Exit(code)


def show_warnings() -> None:
    """Our own warnings become notes of a line, told once among the processes of a run."""
    warnings.simplefilter("always" if os.environ.get("RANK", "0") == "0" else "ignore", Pard2Warning)
    usual = warnings.showwarning
    warnings.showwarning = lambda told, kind, *place: print_note(f"note: {told}") if kind is Pard2Warning else usual(told, kind, *place)


class _Command(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        speak_flags_of(self.params)
        return super().invoke(ctx)


class _Commands(TyperGroup):
    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **more: Any) -> Any:
        with _told():  # which prints --help and --version
            for word in args:
                if word.encode(errors="replace").decode() != word:  # neither a tokenizer nor a file of answers takes it
                    raise Pard2Error(f"the argument {word!r} is not UTF-8 text")
            return super().make_context(info_name, args, parent, **more)

    def invoke(self, ctx: Any) -> Any:
        with _told():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Train PARD-2 drafts, decode losslessly with them, measure them, hand them on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.add_typer(draft.app, name="draft")
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
for group in (app, draft.app, data.app):
    for command in group.registered_commands:
        command.cls = _Command


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pard2 {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version.")) -> None:
    pass
