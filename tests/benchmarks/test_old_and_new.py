"""The comparison of two source trees: what a process of one measures, and what is made of both."""

import time
from pathlib import Path

import pytest
from train_runs import save_target

import old_and_new
import pard2
from pard2.cli.main import main


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


def test_a_method_is_not_timed(pair):
    args = arguments("--target", pair / "target", "--draft", pair / "draft")
    engines = old_and_new.load_engines(args)
    one, same, other = (old_and_new.decode(engines, prompt, 12) for prompt in ("a", "a", "cc"))
    assert list(one["milliseconds"]) == ["plain step", "TI cycle", "TD cycle"] and min(one["milliseconds"].values()) > 0
    assert one["same"] == same["same"] != other["same"]


@pytest.mark.slow
def test_a_process_measures_another_tree(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(old_and_new, "PROMPTS", ["a"])
    tree = Path(pard2.__file__).parents[1]
    decoding = old_and_new.Decoding(tree, arguments("--target", pair / "target", "--draft", pair / "draft", "--new-tokens", 12))
    try:
        assert decoding()["milliseconds"].keys() == old_and_new.METHODS.keys()
    finally:
        decoding.close()
    with pytest.raises(SystemExit, match="decoding ended"):
        old_and_new.Decoding(tmp_path, arguments("--target", pair / "target", "--draft", pair / "draft"))


@pytest.mark.slow
def test_a_training_run_goes_on_between_its_turns(pair):
    training = old_and_new.Training(
        Path(pard2.__file__).parents[1], arguments("--target", pair / "target", "--rounds", 2, "--layers", 2, "--max-length", 64)
    )
    try:
        metrics = Path(training._directory.name) / "run" / "metrics.jsonl"
        assert training()["milliseconds"]["training step"] > 0 and len(old_and_new.read_losses(metrics)) == 2
        time.sleep(1)
        assert len(old_and_new.read_losses(metrics)) == 2
    finally:
        training.close()


def test_half_a_line_is_a_step(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.5}\n{"lo')
    assert old_and_new.read_losses(tmp_path / "metrics.jsonl") == [1.5]
    assert old_and_new.read_losses(tmp_path / "none") == []


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
