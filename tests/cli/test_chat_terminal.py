"""Chat on a real pseudo-terminal: pastes, Ctrl-C, what is typed during an answer, commands."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from fcntl import ioctl

import pytest

pytestmark = pytest.mark.slow
WIDTH = 60
PROMPT = r"\x1b\[\?2004h(\x1b\[\?1l)?\x1b\[\?25l\x1b\[0m[^>]*>"  # of the editor, which marks pastes
CTRL_C, CTRL_D = "\x03", "\x04"
# The tiny model would have said all before anybody could interrupt it.
SLOWLY = """
import time
from pard2.cli.main import main
from pard2.engine.engine import Engine
step = Engine.step
Engine.step = lambda engine: (time.sleep(0.05), step(engine))
main()
"""


class Terminal:
    """A program on a terminal, and what it shows."""

    def __init__(self, *command: object) -> None:
        self.shown = ""
        environment = os.environ | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self.process, self._file = pty.fork()
        if not self.process:
            os.execve(sys.executable, [sys.executable, "-c", SLOWLY, *map(str, command)], environment)
        ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def paste(self, text: str) -> None:
        self.type(f"\x1b[200~{text.replace(chr(10), chr(13))}\x1b[201~")

    def wait(self, pattern: str, seconds: float = 40) -> str:
        """What is shown until the pattern is, which is forgotten then."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            assert time.monotonic() < end, f"waited for {pattern!r}, saw {self.shown!r}"
            if select.select([self._file], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # the program has ended
                    self.shown += os.read(self._file, 4096).decode(errors="replace")
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def end(self) -> int:
        """The exit code."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([self._file], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self._file, 4096).decode(errors="replace")
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it goes on: {self.shown!r}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self._file)


@pytest.fixture
def chat(target_directory, draft_directory):
    terminal = Terminal("chat", "-t", target_directory, "-d", draft_directory, "--max-new-tokens", 8)
    terminal.wait(PROMPT)
    yield terminal
    terminal.close()


def saved(chat: Terminal, path) -> list[str]:
    """What the user has said so far."""
    chat.type(f"/save {path}\r")
    chat.wait("messages; ")
    chat.wait(PROMPT)
    (line,) = path.read_text().splitlines()
    return [one["content"] for one in json.loads(line)["messages"] if one["role"] == "user"]


def test_turns_of_several_lines(chat, tmp_path):
    chat.paste("Summarise this:\nline one\nline two")
    chat.type("\r")
    chat.wait("tokens a cycle")
    chat.wait(PROMPT)
    chat.type('"""\rfirst\r/second\r"""\r')
    chat.wait("tokens a cycle")
    chat.wait(PROMPT)
    assert saved(chat, tmp_path / "f.jsonl") == ["Summarise this:\nline one\nline two", "first\n/second"]
    chat.type(CTRL_D)
    assert chat.end() == 0


def test_ctrl_c_clears_the_line_and_twice_leaves(chat, tmp_path):
    chat.type("not meant" + CTRL_C)
    chat.wait("Ctrl-C once more")
    chat.wait(PROMPT)
    chat.type("meant\r")
    chat.wait("tokens a cycle")
    chat.wait(PROMPT)
    assert saved(chat, tmp_path / "f.jsonl") == ["meant"]
    chat.type(CTRL_C)
    chat.wait("Ctrl-C once more")
    chat.wait(PROMPT)
    chat.type(CTRL_C)
    assert chat.end() == 0 and "interrupted" not in chat.shown


def test_an_interrupt_in_an_answer_and_commands(chat, tmp_path):
    chat.type("/set max_tokens 140\r")
    chat.wait("max_tokens 140")
    chat.wait(PROMPT)
    chat.type("hi\r")
    chat.wait("reading")
    time.sleep(0.5)
    chat.type(CTRL_C)
    chat.wait("stopped; ")
    chat.wait(PROMPT)
    chat.type("/set max_tokens 4\r")
    chat.wait("max_tokens 4")
    chat.wait(PROMPT)
    for line in ("hello\r", "/regen\r"):
        chat.type(line)
        chat.wait("length; ")
        chat.wait(PROMPT)
    assert saved(chat, tmp_path / "f.jsonl") == ["hi", "hello"]
    chat.type("/exit\r")
    assert chat.end() == 0


def test_what_is_typed_during_an_answer_waits_for_the_next_turn(chat, tmp_path):
    chat.type("hi\r")
    chat.wait("reading")
    chat.type("typed ")
    chat.paste("ahead\nof time")
    assert "typed" not in chat.wait("tokens a cycle") and "ahead" not in chat.shown
    chat.wait(PROMPT)
    chat.type("\r")
    chat.wait("tokens a cycle")
    chat.wait(PROMPT)
    assert saved(chat, tmp_path / "f.jsonl") == ["hi", "typed ahead\nof time"]
