"""A run writes into a directory of its own, and over nobody's work."""

from collections.abc import Callable
from pathlib import Path

import pytest
from train_runs import interrupt, save_target

from pard2.errors import Pard2Error
from pard2.train import preparation
from pard2.train.loop import train


def foreign(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


OUTPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a draft of somebody": (lambda folder: foreign(folder, "draft/diary.txt"), "holds 'draft', which is of no run"),
    "metrics of somebody": (lambda folder: foreign(folder, "metrics.jsonl"), "holds 'metrics.jsonl', which is of no run"),
    "checkpoints of somebody": (lambda folder: foreign(folder, "checkpoints/epoch-1/model.pt"), "holds 'checkpoints', which is of no run"),
    "a model": (lambda folder: save_target(folder), "holds 'chat_template.jinja', which is of no run"),
    "a cache": (lambda folder: foreign(folder, ".lock", "manifest.json"), "holds 'manifest.json', which is of no run"),
}


@pytest.mark.parametrize(("fill", "said"), OUTPUTS.values(), ids=OUTPUTS)
def test_what_is_of_no_run_is_written_over(make_config, quiet, tmp_path, monkeypatch, fill, said):
    """It is refused before a model is read, and nothing changes there."""
    output = tmp_path / "run"
    fill(output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    monkeypatch.setattr(preparation, "meta_pair", lambda *_: pytest.fail("read a model"))
    monkeypatch.setattr(preparation, "load_target", lambda *_: pytest.fail("read a model"))
    with pytest.raises(Pard2Error, match=f"loop.output={output} {said}; name a new or an empty directory"):
        train(make_config(), quiet)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", [".", "draft", "best"])
@pytest.mark.parametrize(("section", "field"), [("target", "name"), ("draft", "path")])
def test_a_run_writes_over_what_it_starts_from(make_config, quiet, tmp_path, section, field, place):
    foreign(tmp_path / "run" / place, "config.json")
    named = {section: {field: str(tmp_path / "run" / place)} | ({"layers": None} if section == "draft" else {})}
    with pytest.raises(Pard2Error, match=f"would write over {section}.{field}="):
        train(make_config(**named), quiet)


def test_an_empty_directory_or_a_begun_run_is_refused(make_config, quiet, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    config = make_config(loop={"steps": 2})
    with monkeypatch.context() as patch:
        interrupt(patch, 1, RuntimeError)
        with pytest.raises(RuntimeError):
            train(config, quiet)
    assert not list(tmp_path.glob("run/checkpoints/*")) and (tmp_path / "run" / "metrics.jsonl").stat().st_size
    train(config, quiet)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(config, quiet)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
