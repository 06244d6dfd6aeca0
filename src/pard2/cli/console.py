"""What goes to standard error: plans, progress and errors. Standard output is for results alone."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from pard2.cli.flags import to_flags
from pard2.reading import printable
from pard2.terminal import clock, make_console
from pard2.units import duration

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from pard2.engine.statistics import Totals

console = make_console(stderr=True, soft_wrap=True, emoji=False)  # else `f.jsonl:100: ..` shows a picture

_FIRST_LINE = 3.0  # seconds that a phase may take before a log mentions it
_NEXT_LINE = 30.0  # seconds between the lines of a log about one phase


def answer_text(text: str) -> str:
    """An answer for standard output: byte for byte, but on a terminal without control characters other than
    line feed and tab.
    """
    return printable(text, keep="\n\t") if on_terminal() else text


def on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def print_words(out: Console, text: Text) -> None:
    """A text; a terminal's lines end between words, unless one is longer than a line."""
    out.print(text, soft_wrap=not out.is_terminal)


def print_error(message: str) -> None:
    """One red line."""
    print_words(console, Text.assemble(("error:", "bold red"), " ", (printable(to_flags(message)), "red")))


def print_note(*messages: str) -> None:
    """A plan, or how a run ended; a line for each message."""
    for message in messages:
        print_words(console, Text(printable(to_flags(message)), style="dim"))


class Work:
    """Records finished and tokens made, as a bar or a log shows them.

    totals: of the engine that makes the tokens; asked whenever it is shown, so that tokens count before
        their record is finished, and their rate is the one that the engine's statistics give. Without it
        tokens count as `advance` brings them, and their rate is by the clock.
    """

    def __init__(self, total: int = 0, done: int = 0, totals: "Callable[[], Totals] | None" = None) -> None:
        self.total, self.done = total, done
        self._tokens = 0
        self._totals = totals
        self._before = None if totals is None else totals()
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def advance(self, records: int, tokens: int) -> None:
        self.done += records
        self._tokens += tokens

    def made(self) -> str:
        """`1,234 tokens, 56.7 tokens/s`; empty before the first."""
        tokens, rate = self._tokens, self._tokens / max(self.seconds, 1e-9)
        if self._totals is not None:
            new = self._totals() - self._before
            tokens, rate = max(tokens, new.tokens), new.tokens_per_second
        return f"{tokens:,} tokens{speed(rate)}" if tokens else ""


def speed(rate: float) -> str:
    """`, 56.7 tokens/s`; nothing where no cycle was measured."""
    return f", {rate:,.1f} tokens/s" if rate else ""


@contextmanager
def working(message: str, totals: "Callable[[], Totals] | None" = None) -> Iterator[None]:
    """Say what is being waited for, with a clock and the tokens made.

    On a terminal at once; in a log in a line when it takes longer than some seconds, and in another now and
    then.
    """
    work = Work(totals=totals)
    if not console.is_terminal:
        with _now_and_then(_FIRST_LINE, lambda: _line(message, work)):
            yield
        return
    with clock(console, message, _made_column(work)):
        yield


@contextmanager
def record_progress(description: str, total: int, done: int, totals: "Callable[[], Totals] | None" = None) -> Iterator[Callable[[int, int], None]]:
    """A bar over records with a clock, the tokens made and the time left; yields `advance(records, tokens)`.

    In a log a line now and then, and one at the end. totals: as in `Work`.
    """
    work = Work(total, done, totals)
    if not console.is_terminal:
        try:
            with _now_and_then(_NEXT_LINE, lambda: _line(description, work)):
                yield work.advance
        finally:
            print_note(_line(description, work))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    whole = Column(no_wrap=True)
    bar = BarColumn(bar_width=None)  # gets what the others leave
    columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(table_column=whole), _made_column(work))
    times = (TimeElapsedColumn(whole), TextColumn("left:"), TimeRemainingColumn(table_column=whole))
    # Results that share the terminal must go through the bar's console; those for a file or a pipe must not.
    with Progress(*columns, *times, console=console, expand=True, redirect_stdout=on_terminal()) as progress:
        task = progress.add_task(description, total=total, completed=done)

        def advance(records: int, tokens: int) -> None:
            work.advance(records, tokens)
            progress.update(task, advance=records)

        yield advance


def _made_column(work: Work) -> "ProgressColumn":
    """Asks at each refresh, whether a record has been finished or not."""
    from rich.progress import ProgressColumn
    from rich.table import Column

    class Made(ProgressColumn):
        def render(self, task: object) -> Text:
            return Text(work.made())

    return Made(Column(no_wrap=True))


def _line(what: str, work: Work) -> str:
    parts = (f"{what} {work.done:,}/{work.total:,}" if work.total else what, work.made(), duration(work.seconds))
    return ", ".join(filter(None, parts))


@contextmanager
def _now_and_then(first: float, line: Callable[[], str]) -> Iterator[None]:
    """Note this line after so many seconds, and again every `_NEXT_LINE`, while the block runs."""
    ended = threading.Event()

    def run() -> None:
        pause = first
        while not ended.wait(pause):
            with contextlib.suppress(OSError):  # what is wrong with standard error, the next message tells
                print_note(line())
            pause = _NEXT_LINE

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
