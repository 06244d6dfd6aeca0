"""Shows how a run is doing: a bar and a line of figures on a terminal, a plain line now and then in a log."""

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pard2.units import duration, size

_PLAIN_SECONDS = 30.0  # between the lines of a log
_KEEP = 0.9  # weight left of a step's figures after one more


class TrainingProgress:
    """A context manager that shows one step after another. `clock` gives seconds."""

    def __init__(self, console: Console, total: int, done: int = 0, clock=time.perf_counter) -> None:
        """total: steps of the run. done: how many a resumed run has behind it."""
        self._console, self._total, self._done, self._clock = console, total, done, clock
        self._began = 0.0
        self._taken = 0
        self._told = -float("inf")
        self._sums = dict.fromkeys(("tokens", "slots", "seconds", "wait_seconds"), 0.0)
        # It draws only when told to: a thread that draws would take time from the cores that train.
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "TrainingProgress":
        self._began = self._clock()
        if self._live is not None:
            self._live.start()
            self._live.update(self._view("waiting for the first step"), refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, record: dict[str, Any]) -> None:
        """Show a step's metrics, and its evaluation in a line that stays.

        record: has `step, loss, teacher_forced_al, tokens, slots, seconds, wait_seconds, memory_bytes`.
        """
        self._done = record["step"]
        self._taken += 1
        for name in self._sums:
            self._sums[name] = _KEEP * self._sums[name] + record[name]
        if record.get("evaluation"):
            self._console.print(f"step {self._done:,}: {evaluation_line(record['evaluation'])}", markup=False, highlight=False)
        if self._live is not None:
            self._live.update(self._view(self.figures(record)), refresh=True)
            return
        now = self._clock()
        if now - self._told >= _PLAIN_SECONDS or self._done == self._total:
            self._told = now
            left = self.seconds_left()
            where = f"step {self._done:,}/{self._total:,} ({self._done / self._total:.0%})"
            self._console.print(f"{where}, {duration(left)} left: {self.figures(record)}", markup=False, highlight=False)

    def figures(self, record: dict[str, Any]) -> str:
        """Loss and forecast of this step; speeds and the share of waiting as of the last ten or so."""
        sums = self._sums
        seconds = max(sums["seconds"], 1e-9)
        return (
            f"loss {record['loss']:.3f}  AL {record['teacher_forced_al']:.2f} (teacher-forced)  {sums['tokens'] / seconds:,.0f} tokens/s  "
            f"{sums['slots'] / seconds:,.0f} slots/s  {sums['wait_seconds'] / seconds:.0%} waiting for data  {size(record['memory_bytes'])}"
        )

    def seconds_left(self) -> float:
        """At the average speed since the start, with evaluations and checkpoints."""
        return (self._clock() - self._began) / max(1, self._taken) * (self._total - self._done)

    def _view(self, line: str) -> Group:
        bar = Table.grid(padding=(0, 2))
        left = f"{duration(self.seconds_left())} left" if self._taken else ""
        bar.add_row("training", ProgressBar(self._total, self._done, width=40), f"{self._done:,}/{self._total:,}", left)
        return Group(bar, Text(line, style="dim"))


def evaluation_line(results: list[dict[str, Any]]) -> str:
    """The results of `evaluate` in words."""
    parts = []
    for one in results:
        interval = one["acceptance_length_interval"]
        sure = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
        speed = "" if one["speedup"] is None else f", {one['speedup']:.2f}x plain decoding"
        parts.append(f"{one['method']} {one['acceptance_length']:.2f}{sure}{speed}")
    return f"acceptance length on {results[0]['prompts']} held-out prompts: {'; '.join(parts)}"
