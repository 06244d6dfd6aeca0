"""`train.log`: what was on the terminal, kept with the run."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from train_runs import CONVERSATIONS, interrupt, write_records

from pard2.errors import Pard2Error
from pard2.train.loop import train
from pard2.train.run_log import RunLog


def told(run: Path) -> str:
    return (run / "train.log").read_text()


def test_a_run_leaves_no_word_of_its_own(make_config, quiet, tmp_path):
    held_out = write_records(tmp_path / "held-out.jsonl", CONVERSATIONS[:2])
    train(make_config(data={"evaluation": str(held_out)}, loop={"evaluate_every": 3, "evaluation_tokens": 4}), quiet)
    log = told(tmp_path / "run")
    for said in ("reading the conversations", "loading ", "parameters", "4 conversations", "step 1 of 6 begins", "step 3: acceptance length on 2"):
        assert said in log
    assert "step 6/6 (100%), 0 s left: loss " in log
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in log.splitlines()) and "\x1b" not in log


def test_a_terminals_run_has_fewer_lines_in_its_file(make_config, tmp_path):
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    train(make_config(), screen)
    assert "step 6/6" in told(tmp_path / "run") and "loading " in told(tmp_path / "run") and "\x1b" not in told(tmp_path / "run")
    assert "step 6/6" not in screen.file.getvalue()


def test_a_resumed_run_forgets_what_was_said_or_how_it_ended(make_config, quiet, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 4, RuntimeError)
        with pytest.raises(RuntimeError):
            train(make_config(), quiet)
    train(make_config(), quiet)
    log = told(tmp_path / "run")
    train(make_config(), quiet)
    assert "all 6 steps are done; for more name another loop.output" in quiet.file.getvalue()
    assert log.index("step 1 of 6 begins") < log.index("ended by RuntimeError: killed") < log.index("resuming after step 4") < log.index("step 6/6")


def test_a_run_that_is_refused_leaves_a_file(make_config, quiet, tmp_path):
    with pytest.raises(Pard2Error):
        train(make_config(draft={"layers": [9]}), quiet)
    assert not (tmp_path / "run" / "train.log").exists()


def test_a_process_beside_the_main_one_speaks(quiet, tmp_path):
    with RunLog(quiet, speaks=False) as log, log.doing("waiting"):
        log.open(tmp_path / "train.log")
        log.print("a word")
    assert quiet.file.getvalue() == "" and not (tmp_path / "train.log").exists()
