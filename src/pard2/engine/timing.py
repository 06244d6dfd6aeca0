"""How long the stretches of a cycle took, measured without making the device wait."""

import time
from itertools import pairwise

import torch


class Stopwatch:
    """Marks in time and the seconds between them.

    On CUDA, where calls return before the work is done, the marks are events in the stream; read
    `stretches` only after the host has waited for work that was queued behind the last mark.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] | None = [] if device.type == "cuda" else None
        self._times: list[float] = []

    def start(self) -> None:
        """The first mark. Those of a cycle that an error broke off are forgotten."""
        self._times.clear()
        if self._events is not None:
            self._events.clear()
        self.mark()

    def mark(self) -> None:
        if self._events is None:
            self._times.append(time.perf_counter())
        else:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)

    def stretches(self) -> list[float]:
        """Seconds from each mark to the next; forgets the marks."""
        if self._events is None:
            times, self._times = self._times, []
            return [later - earlier for earlier, later in pairwise(times)]
        events, self._events = self._events, []
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairwise(events)]
