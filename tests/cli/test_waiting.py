"""What is shown while one waits: the phase and a clock, tokens as they are made, and no speed that is not."""

import io
import time

import pytest
from rich.console import Console
from rich.text import Text

from pard2.cli import console
from pard2.cli.console import Work, record_progress, working
from pard2.engine.statistics import Totals


class Engine:
    """Makes tokens when it is told to."""

    def __init__(self) -> None:
        self.totals = Totals(cycles=9, tokens=99, decode_seconds=1.0)  # of earlier work

    def make(self, tokens: int, seconds: float) -> None:
        self.totals += Totals(cycles=1, tokens=tokens, decode_seconds=seconds)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def terminal(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, force_terminal=True, width=80, soft_wrap=True))
    return shown


@pytest.fixture
def log(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, width=80, soft_wrap=True))
    monkeypatch.setattr(console, "_FIRST_LINE", 0.01)
    monkeypatch.setattr(console, "_NEXT_LINE", 0.01)
    return shown


def soon(shown: io.StringIO, text: str, times: int = 1) -> bool:
    end = time.monotonic() + 20
    while shown.getvalue().count(text) < times and time.monotonic() < end:
        time.sleep(0.01)
    return shown.getvalue().count(text) >= times


def test_tokens_count_before_their_record_is_finished(engine):
    work = Work(4, 1, lambda: engine.totals)
    assert work.made() == ""
    engine.make(8, 2.0)
    assert work.made() == "8 tokens, 4.0 tokens/s"
    work.advance(1, 10)  # the first token of each answer is made by no cycle
    assert work.made() == "10 tokens, 4.0 tokens/s" and work.done == 2


def test_there_is_no_speed_before_a_cycle(engine):
    work = Work(4, 0, lambda: engine.totals)
    work.advance(1, 1)
    assert work.made() == "1 tokens"


def test_a_bar_moves_while_no_record_is_finished(terminal, engine):
    with record_progress("answers", 2, 0, lambda: engine.totals) as advance:
        assert soon(terminal, "0/2") and "tokens" not in terminal.getvalue()
        engine.make(1234, 100.0)
        assert soon(terminal, "1,234 tokens, 12.3 tokens/s") and "1/2" not in terminal.getvalue()
        advance(1, 5)
        assert soon(terminal, "1/2") and soon(terminal, "0:00:0")
    lines = Text.from_ansi(terminal.getvalue().replace("\r", "\n")).plain.splitlines()
    assert max(len(line) for line in lines) <= 80 and all("left: " in line for line in lines if "answers" in line)


def test_a_log_has_a_line_now_and_then_and_one_at_the_end(log, engine):
    with record_progress("answers", 2, 0, lambda: engine.totals) as advance:
        assert soon(log, "answers 0/2, 0 s\n", 2)
        engine.make(12, 3.0)
        assert soon(log, "answers 0/2, 12 tokens, 4.0 tokens/s, 0 s\n")
        advance(2, 14)
    assert log.getvalue().endswith("answers 2/2, 14 tokens, 4.0 tokens/s, 0 s\n")


def test_a_phase_has_a_clock_at_once(terminal):
    with working("loading [x]"):
        assert soon(terminal, "loading [x]") and soon(terminal, "0:00:00")


def test_a_log_names_a_phase_that_takes_longer(log, monkeypatch):
    with working("loading [x]"):
        assert soon(log, "loading [x], 0 s\n")
    monkeypatch.setattr(console, "_FIRST_LINE", 5.0)
    before = log.getvalue()
    with working("quick"):
        pass
    assert log.getvalue() == before


def test_a_bar_without_an_engine_counts_what_is_finished(log):
    with record_progress("conversations", 3, 1) as advance:
        advance(1, 50)
    assert log.getvalue().splitlines()[-1].startswith("conversations 2/3, 50 tokens, ")
