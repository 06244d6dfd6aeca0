"""A signal ends a run after the step that it came in, with a checkpoint; a second one ends it at once."""

import signal
import threading

import pytest
from train_runs import assert_bit_for_bit, newest

from pard2.train import loop as training
from pard2.train import stopping
from pard2.train.loop import train
from pard2.train.stopping import Stopped, StopSignals


def send(monkeypatch: pytest.MonkeyPatch, at_step: int, *numbers: signal.Signals) -> None:
    """Let signals come inside step `at_step` (counted from 0)."""
    real = training.TrainingLoop._update

    def update(self, step, sums):
        for number in numbers if step == at_step else ():
            signal.raise_signal(number)
        return real(self, step, sums)

    monkeypatch.setattr(training.TrainingLoop, "_update", update)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_loses_steps(make_config, quiet, tmp_path, monkeypatch, number):
    before = [signal.getsignal(one) for one in stopping._SIGNALS]
    whole, stopped = (make_config(loop={"output": str(tmp_path / name), "save_every": 100}) for name in ("whole", "stopped"))
    if number == signal.SIGTERM:
        train(whole, quiet)
    with monkeypatch.context() as patch:
        send(patch, 2, number)
        with pytest.raises(Stopped) as caught:
            train(stopped, quiet)
    assert newest(stopped.loop.output).name == "step-00000003" and caught.value.signal == number
    assert str(caught.value) == f"{number.name}: stopped after step 3, of which a checkpoint is written; the same command goes on there"
    assert f"{number.name}: finishing the step under way" in quiet.file.getvalue()
    assert [signal.getsignal(one) for one in stopping._SIGNALS] == before
    if number == signal.SIGTERM:
        train(stopped, quiet)
        assert_bit_for_bit(whole.loop.output, stopped.loop.output)


def test_a_signal_in_the_last_step_leaves_no_draft(make_config, quiet, monkeypatch):
    send(monkeypatch, 1, signal.SIGTERM)
    assert (train(make_config(loop={"steps": 2}), quiet) / "config.json").is_file()


def test_whoever_stops_a_run_waits_for_an_evaluation(make_config, quiet, tmp_path, monkeypatch):
    config = make_config(data={"evaluation": str(tmp_path / "data.jsonl")}, loop={"evaluate_every": 1})
    send(monkeypatch, 0, signal.SIGTERM)
    monkeypatch.setattr(training.TrainingLoop, "evaluate", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(Stopped):
        train(config, quiet)


def test_a_second_signal_is_waited_with(make_config, quiet, tmp_path, monkeypatch):
    """But not what a launcher sends on of the first."""
    config = make_config(loop={"save_every": 100})
    with monkeypatch.context() as patch:
        send(patch, 2, signal.SIGINT, signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGINT: stopped after step 3"):
            train(config, quiet)
    monkeypatch.setattr(stopping, "_SAME_SECONDS", -1.0)
    send(monkeypatch, 4, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(config, quiet)
    assert not isinstance(caught.value, Stopped) and newest(config.loop.output).name == "step-00000003"


def test_a_signal_that_is_ignored_ends_a_run():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(print) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.caught and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_another_thread_fails():
    """Only the main one may set handlers."""
    caught = []

    def enter() -> None:
        with StopSignals(print) as stop:
            caught.append(stop.caught)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert caught == [0]
