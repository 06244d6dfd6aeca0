"""How pard2 looks on a terminal, on a dark ground and on a light one, and what it shows while one waits."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.theme import Theme

from pard2.reading import printable

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

# Yellow and cyan cannot be read on white, and rich's bars are a dark grey that hides on black.
READABLE = Theme({"progress.elapsed": "none", "progress.remaining": "none", "bar.back": "color(244)"})


def make_console(**options: Any) -> Console:
    """A console in colours that can be read everywhere, and which does not colour words on its own."""
    return Console(highlight=False, theme=READABLE, **options)


@contextmanager
def clock(console: Console, what: str, *more: "ProgressColumn") -> Iterator[None]:
    """Show what is being waited for and for how long, and more beside it; gone once the block ends."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    words = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))  # alone may take two lines
    columns = (SpinnerColumn(), words, TimeElapsedColumn(Column(no_wrap=True)), *more)
    shared = sys.stdout is not None and sys.stdout.isatty()  # results for a file or a pipe must not go through the console
    with Progress(*columns, console=console, transient=True, redirect_stdout=shared) as progress:
        progress.add_task(printable(what), total=None)
        yield
