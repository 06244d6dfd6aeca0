"""The command `pard2`: its subcommands, and what every one of them does with errors and Ctrl-C.

Commands import what they need when they run, so that `pard2 --help` does not wait for torch.
"""

import os
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from pard2 import __version__
from pard2.cli import bench, chat, data, demo, draft, generate, train, verify
from pard2.cli.console import print_error, print_note
from pard2.errors import Pard2Error, Pard2Warning

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Commands(TyperGroup):
    """Tells a user's mistake in one line; everything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Pard2Error as error:
            print_error(str(error))
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(INTERRUPTED) from None


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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pard2 {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version.")) -> None:
    pass


def main(argv: list[str] | None = None) -> None:
    """Run a command line, by default the process's own, and exit with its code."""
    _quiet_libraries()
    # Our own warnings are notes of a line, told once among the processes of a run.
    warnings.simplefilter("always" if os.environ.get("RANK", "0") == "0" else "ignore", Pard2Warning)
    usual = warnings.showwarning
    warnings.showwarning = lambda told, kind, *place: print_note(f"note: {told}") if kind is Pard2Warning else usual(told, kind, *place)
    try:
        app(args=argv, prog_name="pard2")
    except KeyboardInterrupt:  # before the command began
        raise SystemExit(INTERRUPTED) from None


def _quiet_libraries() -> None:
    """Keep the progress bars and warnings of transformers and the hub out of our output; whoever wants them sets these."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
