"""Large downloads: size and place in a line, and on a terminal a bar with the rate and the time left."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pard2.checkpoints.hub import report_downloads


def show_downloads() -> None:
    """From now on, once among the processes of a run."""
    if os.environ.get("RANK", "0") == "0":
        report_downloads(_progress)


@contextmanager
def _progress(name: str, size: int, place: Path) -> Iterator[Callable[[int], None]]:
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from pard2.cli.console import console, print_note
    from pard2.reading import printable
    from pard2.units import duration
    from pard2.units import size as in_words

    print_note(f"downloading {name}: {in_words(size)} to {place}")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("left:"), TimeRemainingColumn())
    began = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(printable(name.rpartition("/")[2])), total=size)
        yield lambda done: progress.update(task, completed=done)
    print_note(f"downloaded {name} in {duration(time.perf_counter() - began)}")
