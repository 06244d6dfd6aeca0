"""The comparison of two source trees: what a process of one measures, and what is made of both."""

import json

import pytest
from train_runs import save_target

import old_and_new
from pard2.cli.main import main
from pard2.config import load_config
from pard2.train import loop


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A tiny target and a draft cut out of it, as directories."""
    directory = tmp_path_factory.mktemp("pair")
    save_target(directory / "target")
    with pytest.raises(SystemExit) as ending:
        main(["draft", "init", "-t", str(directory / "target"), "--layers", "0,2", "-o", str(directory / "draft"), "--draft-tokens", "4"])
    assert not ending.value.code
    return directory


def arguments(*more):
    return old_and_new.parse(["old", "new", "--dtype", "float32", "--draft-tokens", "4", *map(str, more)])


def test_a_method_is_not_timed(pair, monkeypatch):
    monkeypatch.setattr(old_and_new, "PROMPTS", ["a", "bb"])
    args = arguments("--target", pair / "target", "--draft", pair / "draft", "--new-tokens", 12)
    one, other = (old_and_new.decode(args) for _ in range(2))
    assert list(one["milliseconds"]) == ["plain step", "TI cycle", "TD cycle"] and min(one["milliseconds"].values()) > 0
    assert one["same"] == other["same"]
    monkeypatch.setattr(old_and_new, "PROMPTS", ["a", "cc"])
    assert old_and_new.decode(args)["same"] != one["same"]


def test_the_training_run_is_one_that_trains(pair, tmp_path):
    config = old_and_new.write_run(tmp_path, str(pair / "target"), 3, 2)
    loop.train(load_config(config, ["data.max_length=64"]))
    figures = old_and_new.read_steps(tmp_path / "run" / "metrics.jsonl")
    assert figures["milliseconds"]["training step"] > 0 and len(figures["same"]) == 3


def test_the_first_step_is_not_counted(tmp_path):
    steps = [{"step": n, "loss": 1.0, "seconds": s} for n, s in enumerate((9.0, 0.1, 0.3, 0.2), 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    assert old_and_new.read_steps(tmp_path / "metrics.jsonl")["milliseconds"]["training step"] == pytest.approx(200)


def test_a_slower_tree_passes():
    figures = lambda same, *times: [{"milliseconds": {"step": time}, "same": same} for time in times]  # noqa: E731
    old = figures("text", 10.0, 10.0, 20.0)
    (result,) = old_and_new.compare(old, figures("text", 10.2, 10.2, 30.0), lambda pairs: None)
    assert result["ratio"] == pytest.approx(1.02) and result["within_limit"] and result["same"]
    assert (result["old_milliseconds"], result["new_milliseconds"]) == (10.0, 10.2)
    (slower,) = old_and_new.compare(old, figures("another", 10.4, 10.4, 10.0), lambda pairs: None)
    assert not slower["within_limit"] and not slower["same"]


def test_a_process_that_fails_is_a_figure(tmp_path):
    with pytest.raises(SystemExit, match="no such thing"):
        old_and_new.run(tmp_path, ["-c", "raise SystemExit('no such thing')"])


def test_a_process_runs_another_tree_than_its_own(tmp_path):
    (tmp_path / "pard2").mkdir()
    (tmp_path / "pard2" / "__init__.py").write_text("")
    seconds, output = old_and_new.run(tmp_path, ["-c", "import pard2; print(pard2.__file__)"])
    assert output.strip() == str(tmp_path / "pard2" / "__init__.py") and seconds > 0
