"""What goes to standard error: plans, progress and errors. Standard output is for results alone."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from pard2.cli.flags import to_flags
from pard2.reading import printable

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)  # else `f.jsonl:100: ..` shows a picture


def answer_text(text: str) -> str:
    """An answer for standard output: byte for byte, but on a terminal without control characters other than
    line feed and tab.
    """
    return printable(text, keep="\n\t") if on_terminal() else text


def on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def print_error(message: str) -> None:
    """One red line."""
    console.print(f"[bold red]error:[/] [red]{escape(printable(to_flags(message)))}[/]")


def print_note(message: str) -> None:
    """A plan, or how a run ended."""
    console.print(f"[dim]{escape(printable(to_flags(message)))}[/]")


@contextmanager
def working(message: str) -> Iterator[None]:
    """Say what is being waited for; a spinner on a terminal, nothing elsewhere."""
    with console.status(escape(printable(message))):
        yield


@contextmanager
def record_progress(description: str, total: int, done: int) -> Iterator[Callable[[int, int], None]]:
    """A bar over records with tokens per second and the time left; yields `advance(records, tokens)`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
    began, tokens = time.perf_counter(), 0
    # Results that share the terminal must go through the bar's console; those for a file or a pipe must not.
    with Progress(*columns, *times, console=console, redirect_stdout=on_terminal()) as progress:
        task = progress.add_task(description, total=total, completed=done, rate="")

        def advance(records: int, new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            progress.update(task, advance=records, rate=f"{tokens / (time.perf_counter() - began):,.0f} tokens/s" if tokens else "")

        yield advance
