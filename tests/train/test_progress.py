"""What a run shows while it runs."""

import io
import re

import pytest
from rich.console import Console

from pard2.train.progress import TrainingProgress
from pard2.train.run_log import RunLog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(step: int, **changes) -> dict:
    usual = {
        "loss": 2.5,
        "teacher_forced_al": 1.75,
        "tokens": 1000,
        "slots": 4000,
        "seconds": 2.0,
        "wait_seconds": 0.5,
        "memory_bytes": 3_200_000_000,
    }
    return {"step": step} | usual | changes


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Console:
    return Console(file=io.StringIO(), width=300)


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_figures_of_a_step_are_wrong_or_missing(log, clock):
    with TrainingProgress(RunLog(log), 1000, 0, clock) as progress:
        clock.now += 2
        progress.update(record(1))
    (begins, line) = lines(log)
    assert begins == "step 1 of 1,000 begins"
    assert line == ("step 1/1,000 (0%), 33 min left: loss 2.500  AL 1.75 (teacher-forced)  500 tokens/s  2,000 slots/s  25% waiting for data  3.2 GB")


def test_a_log_fills_with_a_line_a_step_or_lacks_the_last(log, clock):
    with TrainingProgress(RunLog(log), 100, 0, clock) as progress:
        for step in range(1, 101):
            clock.now += 10
            progress.update(record(step))
    told = [int(line.split()[1].split("/")[0]) for line in lines(log)[1:]]
    assert told == [*range(1, 101, 3)]
    log.file.truncate(0)
    with TrainingProgress(RunLog(log), 2, 0, clock) as progress:
        progress.update(record(1))
        progress.update(record(2))
    assert lines(log)[-1].startswith("step 2/2 (100%), 0 s left")


def test_time_left_forgets_evaluations_or_the_steps_of_an_earlier_run(log, clock):
    """Steps take 2 s, but every tenth is followed by 20 s of decoding; 100 steps
    were taken in an earlier run."""
    progress = TrainingProgress(RunLog(log), 200, 100, clock).__enter__()
    for step in range(101, 121):
        clock.now += 2 + (20 if step % 10 == 0 else 0)
        progress.update(record(step))
    assert progress.seconds_left() == pytest.approx(80 * 4.0)


def test_speeds_jump_with_every_step_or_never_follow(log, clock):
    progress = TrainingProgress(RunLog(log), 200, 0, clock).__enter__()

    def speed() -> int:
        return int(progress.figures(record(1)).split(" tokens/s")[0].split()[-1].replace(",", ""))

    for step in range(1, 50):
        progress.update(record(step))
    progress.update(record(50, seconds=10.0))
    assert 250 < speed() < 450  # one slow step of five times the time
    for step in range(51, 100):
        progress.update(record(step, seconds=1.0))
    assert speed() == pytest.approx(1000, rel=0.02)


def test_skipped_steps_whose_loss_is_no_number(log, clock):
    with TrainingProgress(RunLog(log), 10, 0, clock) as progress:
        progress.update(record(1, loss=float("nan")))
    assert "loss nan" in lines(log)[1]


def test_an_evaluation_scrolls_by_unseen(log, clock):
    """It is told at once, between the lines of a log, too."""
    td = {"method": "pard2-td", "acceptance_length": 2.5, "acceptance_length_interval": [2.25, 2.75], "speedup": 1.8, "prompts": 8}
    ti = {"method": "pard2-ti", "acceptance_length": 2.0, "acceptance_length_interval": None, "speedup": None, "prompts": 8}
    with TrainingProgress(RunLog(log), 10, 0, clock) as progress:
        progress.update(record(1))
        progress.update(record(2, evaluation=[td, ti]))
    said = "step 2: acceptance length on 8 held-out prompts: pard2-td 2.50 (2.25 to 2.75), 1.80x plain decoding; pard2-ti 2.00"
    assert lines(log)[2:] == [said]


def test_a_terminal_gets_log_lines_or_a_log_gets_escape_codes(log, clock):
    screen = Console(file=io.StringIO(), width=200, force_terminal=True)
    with TrainingProgress(RunLog(screen), 10, 0, clock) as progress:
        screen.print("a warning")
        progress.update(record(3))
    shown = screen.file.getvalue()
    assert "3/10" in shown and "1.75 (teacher-forced)" in shown and "a warning" in shown and "\x1b[" in shown and "step 3/10" not in shown
    with TrainingProgress(RunLog(log), 10, 0, clock) as progress:
        progress.update(record(3))
    assert "\x1b[" not in log.file.getvalue()


@pytest.mark.parametrize("width", [72, 80, 120])
def test_the_last_figure_is_cut_off_on_a_narrow_terminal(clock, width):
    """The command's console wraps no line, and whatever stands in a live display beyond the edge is lost."""
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, soft_wrap=True)
    with TrainingProgress(RunLog(screen), 100_000, 0, clock) as progress:
        progress.update(record(12_345, loss=12.345, tokens=108_000, slots=432_000))
        screen.file.truncate(0)
    shown = screen.file.getvalue()
    words = ["12,345/100,000", "12.345", "1.75", "(teacher-forced)", "54,000", "tokens/s", "216,000", "slots/s", "25%", "data", "3.2", "GB"]
    assert [word for word in words if word not in shown.split()] == []
    assert all(len(re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", line)) <= width for line in re.split(r"[\r\n]", shown))


def test_a_wait_has_no_clock_and_no_name(clock):
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with TrainingProgress(RunLog(screen), 10, 0, clock) as progress:
        clock.now += 42
        screen.print(progress._view())
        progress.doing("evaluating")
        clock.now += 7
        screen.print(progress._view())
    assert "step 1: 42 s" in screen.file.getvalue() and "evaluating: 7 s" in screen.file.getvalue()


def test_what_was_being_done_stays_on_the_terminal(clock):
    """The last view of a live display stays: without a phase that is over."""
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with TrainingProgress(RunLog(screen), 1, 0, clock) as progress:
        progress.update(record(1))
        progress.doing("writing a checkpoint")
    last = screen.file.getvalue().rpartition("1/1")[2]
    assert "loss 2.500" in last and "checkpoint" not in last


def test_a_terminal_breaks_words_of_an_evaluation(clock):
    screen = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None, soft_wrap=True)
    RunLog(screen).print("a line of a run " * 8, markup=False)
    assert {line.strip().endswith(("run", "a", "of", "line")) for line in lines(screen)} == {True}
