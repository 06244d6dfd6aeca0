"""Ctrl-C, SIGTERM and SIGHUP in a run: it finishes the step under way, writes a checkpoint, and ends."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_SECONDS = 1.0  # a launcher passes on what the terminal has sent to its processes already


class Stopped(KeyboardInterrupt):
    """A signal ended a run in good order. signal: its number. Its text is a line for a person."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"{signal.Signals(number).name}: stopped after step {step:,}, of which a checkpoint is written; the same command goes on there"
        )
        self.signal = number


class StopSignals:
    """While this context lasts, a first signal is noted: `caught` is its number.

    A second one has the effect that it had before, at once.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        """tell: shows a line to a person."""
        self.caught = 0
        self._tell, self._at = tell, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, say
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.caught:
            if time.monotonic() - self._at > _SAME_SECONDS:
                self.__exit__()
                signal.raise_signal(number)
            return
        self.caught, self._at = number, time.monotonic()
        with contextlib.suppress(RuntimeError, OSError):  # caught in the middle of another line, which may not be broken into
            self._tell(f"{signal.Signals(number).name}: finishing the step under way, then writing a checkpoint; once more ends at once")
