"""Shows how a run is doing: a bar and its figures on a terminal, a plain line now and then in a log."""

import time
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pard2.train.run_log import RunLog
from pard2.units import duration, size

_PLAIN_SECONDS = 30.0  # between the lines of a log
_KEEP = 0.9  # weight left of a step's figures after one more
_BAR_WIDTH = 30  # leaves room for all beside it at 80 columns


class TrainingProgress:
    """A context manager that shows one step after another. `clock` gives seconds.

    On a terminal the plain lines go to the run's file alone.
    """

    def __init__(self, log: RunLog, total: int, done: int = 0, clock=time.perf_counter) -> None:
        """total: steps of the run. done: how many a resumed run has behind it."""
        self._log, self._total, self._done, self._clock = log, total, done, clock
        self._began = self._since = 0.0
        self._taken = 0
        self._told = -float("inf")
        self._sums = dict.fromkeys(("tokens", "slots", "seconds", "wait_seconds"), 0.0)
        self._doing, self._figures = "", ""
        # Once a second, for its clock: more would take time from the cores that train.
        shown = log.speaks and log.console.is_terminal
        self._live = Live(console=log.console, get_renderable=self._view, refresh_per_second=1) if shown else None

    def __enter__(self) -> "TrainingProgress":
        self._began = self._clock()
        self.doing(f"step {self._done + 1:,}")
        if self._done < self._total:
            self._say(f"step {self._done + 1:,} of {self._total:,} begins")
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._doing = ""  # else it would stand there for good
            self._live.stop()

    def doing(self, what: str) -> None:
        """What the run does from now on; a terminal shows it with a clock."""
        self._doing, self._since = what, self._clock()

    def update(self, record: dict[str, Any]) -> None:
        """Show a step's metrics, and its evaluation in a line that stays.

        record: has `step, loss, teacher_forced_al, tokens, slots, seconds, wait_seconds, memory_bytes`.
        """
        self._done = record["step"]
        self._taken += 1
        for name in self._sums:
            self._sums[name] = _KEEP * self._sums[name] + record[name]
        self._figures = self.figures(record)
        if record.get("evaluation"):
            line = f"step {self._done:,}: {evaluation_line(record['evaluation'])}"
            self._log.print(line, markup=False, highlight=False)
        now = self._clock()
        if now - self._told >= _PLAIN_SECONDS or self._done == self._total:
            self._told = now
            left = duration(self.seconds_left())
            self._say(f"step {self._done:,}/{self._total:,} ({self._done / self._total:.0%}), {left} left: {self._figures}")

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

    def _say(self, line: str) -> None:
        say = self._log.note if self._live is not None else self._log.print
        say(line, markup=False, highlight=False)

    def _view(self) -> Group:
        bar = Table.grid(padding=(0, 2))
        left = f"{duration(self.seconds_left())} left" if self._taken else ""
        bar.add_row("training", ProgressBar(self._total, self._done, width=_BAR_WIDTH), f"{self._done:,}/{self._total:,}", left)
        # Folded, whatever the console does with other lines: no figure may be cut off.
        lines = (self._figures, self._doing and f"{self._doing}: {duration(self._clock() - self._since)}")
        return Group(bar, *(Text(line, no_wrap=False, overflow="fold") for line in lines if line))


def evaluation_line(results: list[dict[str, Any]]) -> str:
    """The results of `evaluate` in words."""
    parts = []
    for one in results:
        interval = one["acceptance_length_interval"]
        sure = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
        speed = "" if one["speedup"] is None else f", {one['speedup']:.2f}x plain decoding"
        parts.append(f"{one['method']} {one['acceptance_length']:.2f}{sure}{speed}")
    return f"acceptance length on {results[0]['prompts']} held-out prompts: {'; '.join(parts)}"
