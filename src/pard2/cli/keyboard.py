"""What the user says in a chat: typed into an editor of lines on a terminal, else read line by line."""

import sys
import termios
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from pard2.cli import interrupts
from pard2.cli.console import print_note
from pard2.errors import Pard2Error

QUOTES = '"""'  # round a turn of several lines


class Turns(Protocol):
    """Where the user's turns come from."""

    def listen(self) -> str | None:
        """What the user says next; None at the end."""

    def unseen(self) -> AbstractContextManager[None]:
        """A context in which nothing that is typed appears; the next turn gets it."""


def open_turns() -> Turns:
    """The terminal's, where somebody can see what is typed; else those of standard input."""
    shown = sys.stdout.isatty() or sys.stderr.isatty()
    return Keyboard() if sys.stdin.isatty() and shown else Lines()


class Lines:
    """Each line of standard input is a turn."""

    def listen(self) -> str | None:
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError:
            raise Pard2Error("standard input is not UTF-8 text") from None
        return line.rstrip("\r\n") if line else None

    def unseen(self) -> AbstractContextManager[None]:
        return nullcontext()


class Keyboard:
    """An editor of lines with a history. A paste of several lines is one turn, and so is what stands between
    `QUOTES`.

    Ctrl-C clears the line; once more in a row, on an empty line, it ends the conversation, as Ctrl-D does.
    """

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.output import create_output

        self._output = create_output(always_prefer_tty=True)
        open_quotes = Condition(lambda: is_open(self._session.default_buffer.text))
        self._session: PromptSession[str] = PromptSession("> ", output=self._output, multiline=open_quotes, prompt_continuation="  ")

    def listen(self) -> str | None:
        leaving = False
        while True:
            try:
                return unquoted(self._session.prompt())
            except EOFError:
                return None
            except KeyboardInterrupt:
                if leaving and not self._session.default_buffer.text:
                    return None
                leaving = True
                print_note("Ctrl-C once more, or Ctrl-D, ends the conversation")

    @contextmanager
    def unseen(self) -> Iterator[None]:
        number = sys.stdin.fileno()
        usual = termios.tcgetattr(number)
        quiet = termios.tcgetattr(number)
        quiet[3] &= ~(termios.ECHO | termios.ICANON)

        def restore() -> None:
            termios.tcsetattr(number, termios.TCSANOW, usual)
            self._output.disable_bracketed_paste()
            self._output.flush()

        interrupts.before_leaving = restore
        try:
            termios.tcsetattr(number, termios.TCSANOW, quiet)
            self._output.enable_bracketed_paste()  # a paste waits as one, too
            self._output.flush()
            yield
        finally:
            interrupts.before_leaving = None
            restore()


def is_open(text: str) -> bool:
    """Whether a turn that begins with `QUOTES` lacks those at its end."""
    text = text.strip()
    return text.startswith(QUOTES) and not (len(text) >= 2 * len(QUOTES) and text.endswith(QUOTES))


def unquoted(text: str) -> str:
    """What stands between `QUOTES`, after a line break: it is no command. Other text as it is."""
    if is_open(text) or not text.strip().startswith(QUOTES):
        return text
    return "\n" + text.strip().removeprefix(QUOTES).removesuffix(QUOTES)
