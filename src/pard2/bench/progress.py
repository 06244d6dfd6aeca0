"""How far a benchmark has come, and how long it will take."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pard2.bench.plan import Chunk, Configuration
from pard2.bench.summary import Result
from pard2.bench.table import results_table
from pard2.reading import printable
from pard2.units import duration


@dataclass
class TimeLeft:
    """Seconds that a list of chunks will take, from those done: so many a prompt, for each batch size."""

    chunks: Sequence[Chunk]

    def __post_init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._prompts: dict[int, int] = {}

    def observe(self, chunk: Chunk, seconds: float) -> None:
        self._seconds[chunk.batch_size] = self._seconds.get(chunk.batch_size, 0.0) + seconds
        self._prompts[chunk.batch_size] = self._prompts.get(chunk.batch_size, 0) + chunk.count

    def estimate(self, done: int) -> float | None:
        """For all chunks after the first `done`; None before any is known."""
        if not self._seconds:
            return None
        usual = sum(self._seconds.values()) / sum(self._prompts.values())
        costs = {size: self._seconds[size] / self._prompts[size] for size in self._seconds}
        return sum(costs.get(chunk.batch_size, usual) * chunk.count for chunk in self.chunks[done:])


class LiveTable:
    """The results known so far, and a line that says what is being done and how long it will take."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._results: Sequence[Result] = ()
        self._where = ""

    def show(self, results: Sequence[Result], where: str, left: float | None) -> None:
        self._results, self._where = results, where + ("" if left is None else f", {duration(left)} left")
        self._refresh(self._where)

    def announce(self, configuration: Configuration) -> None:
        of = f" of {configuration.draft}" if configuration.draft else ""
        name = f"{configuration.method}{of}, batch {configuration.batch_size}, K {configuration.draft_tokens}"
        self._refresh(f"{self._where}: {name}, temperature {configuration.temperature:g}")

    def _refresh(self, line: str) -> None:
        text = Text(printable(line), style="dim")
        self._live.update(Group(results_table(self._results, self._live.console.width), text) if self._results else text, refresh=True)


@contextmanager
def live_table(console: Console) -> Iterator[LiveTable]:
    """A table that terminals show while it is open.

    It is drawn only when told to: a thread that draws would use the cores that are measured.
    """
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield LiveTable(live)
