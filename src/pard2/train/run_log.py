"""What a run has to say: on the console, and as plain text with the time in its directory's `train.log`."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from pard2.files import writing
from pard2.terminal import clock

_WIDTH = 160  # of the file's lines


class RunLog:
    """Says it. A context manager; whatever ends the block with an exception is noted in the file, too.

    Before `open` nothing is written: what was said until then follows when the file is opened, so that a run
    which is refused leaves no file.
    """

    def __init__(self, console: Console, speaks: bool = True) -> None:
        """speaks: False for all processes of a run but the main one, which say and write nothing."""
        self.console, self.speaks = console, speaks
        self._plain = Console(file=io.StringIO(), width=_WIDTH, color_system=None, highlight=False, emoji=False)
        self._before: list[str] = []
        self._path: Path | None = None
        self._file: TextIO | None = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if self._file is None:
            return
        try:
            if kind is not None:
                self.note(f"ended by {kind.__name__}: {error}", markup=False)
        finally:
            self._file.close()

    def open(self, path: Path) -> None:
        """Go on at the end of this file. Raises `Pard2Error` where it cannot be written."""
        if self.speaks:
            self._path = path
            with writing(path):
                self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by __exit__
                self._file.writelines(self._before)

    def print(self, *what: Any, **how: Any) -> None:
        """Say it in both places. Arguments are those of rich's `Console.print`."""
        if self.speaks:
            # A terminal would break long lines within words; a log keeps them whole.
            self.console.print(*what, **{"soft_wrap": not self.console.is_terminal} | how)
            self.note(*what, **how)

    def note(self, *what: Any, **how: Any) -> None:
        """Say it in the file alone; each line begins with the time."""
        if not self.speaks:
            return
        with self._plain.capture() as captured:
            self._plain.print(*what, **how)
        now = datetime.now().isoformat(" ", "seconds")
        lines = [f"{now}  {line.rstrip()}\n" for line in captured.get().splitlines()]
        if self._file is None:
            self._before += lines
            return
        with writing(self._path, "; the last checkpoint is whole"):
            self._file.writelines(lines)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say what is being waited for: on a terminal with a clock, in a log as a line at once."""
        if not self.speaks:
            yield
        elif self.console.is_terminal:
            self.note(what, markup=False)
            with clock(self.console, what):
                yield
        else:
            self.print(what, markup=False, highlight=False)
            yield
