"""`pard2 train --resume`, and runs that are not what their directory holds."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pard2.train import loop


@pytest.fixture
def run_file(tmp_path: Path, target_directory: Path) -> Path:
    """In a directory of its own, with paths that lead from there."""
    document = {
        "target": {"name": str(target_directory)},
        "draft": {"layers": 1},
        "data": {"train": ["../data/train.jsonl"], "max_length": 100},
        "loop": {"output": "../run", "steps": 4, "rows_per_step": 1, "save_every": 1, "device": "cpu"},
    }
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because of the tides"}]
    for name in ("data", "recipes", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps({"id": str(i), "messages": turns}) + "\n" for i in range(5)))
    (tmp_path / "recipes" / "run.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "recipes" / "run.yaml"


@pytest.fixture
def killed(pard2, run_file, tmp_path, monkeypatch) -> Path:
    """A run with overrides, begun by relative paths from another directory, that died in its third step."""
    real = loop.TrainingLoop.step

    def step(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return real(self, number)

    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "elsewhere")
        patch.setattr(loop.TrainingLoop, "step", step)
        assert pard2("train", "../recipes/run.yaml", "optimizer.lr=0.002", "objective.draft_tokens=4").code == 130
    return tmp_path / "run"


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_only_with_its_file_and_overrides(pard2, killed, run_file, tmp_path):
    run_file.unlink()
    result = pard2("train", "--resume", killed)
    assert result.code == 0 and "resuming after step 2" in result.err and Path(result.out.strip()) == killed / "draft"
    assert steps(killed) == [1, 2, 3, 4]
    config = json.loads((killed / "draft" / "training.json").read_text())["config"]
    assert config["optimizer"]["lr"] == 0.002 and config["objective"]["draft_tokens"] == 4


def test_a_moved_run_goes_on_where_it_was(pard2, killed, tmp_path):
    moved = shutil.move(killed, tmp_path / "moved")
    assert pard2("train", "--resume", moved).code == 0
    assert steps(moved) == [1, 2, 3, 4] and not killed.exists()


def test_an_override_of_a_resumed_run(pard2, killed):
    assert "holds a run with another optimizer.lr (0.002, not 0.1)" in pard2("train", "--resume", killed, "optimizer.lr=0.1").error
    assert pard2("train", "--resume", killed, "loop.keep_last=3").code == 0
    assert len(list((killed / "checkpoints").iterdir())) == 3


def test_a_run_is_said_to_differ_in_one_field_and_to_be_lost(pard2, killed, run_file):
    """All that was given on the command line is named, and how to go on without naming it."""
    error = pard2("train", run_file).error
    assert "holds a run with another objective.draft_tokens (4, not 16), optimizer.lr (0.002, not 0.0001); go on with" in error
    assert f"`pard2 train --resume {killed}`" in error
    many = pard2("train", run_file, "objective.ce_alpha=0.2", "objective.kd_alpha=2", "objective.retention=0.5", "loop.seed=4").error
    assert "(0.7, not 0.5)" in many and "and 2 more fields; go on" in many


def test_a_directory_without_a_run_is_resumed(pard2, tmp_path, run_file, killed):
    for place in (tmp_path / "none", tmp_path / "data", run_file):
        assert f"{place} holds no run to resume" in pard2("train", "--resume", place).error
    assert f"leave {run_file} out" in pard2("train", run_file, "--resume", killed).error
    assert "name a YAML file" in pard2("train").error
    (killed / "checkpoints" / "step-00000002" / "run.json").write_text("{")
    assert "step-00000002 is no readable checkpoint" in pard2("train", "--resume", killed).error


def test_a_resumed_run_takes_defaults_for_wishes(pard2, killed, run_file, tmp_path):
    """The draft that a run begins with has another scale than the default, which the run does not ask for."""
    config = json.loads((tmp_path / "run" / "draft" / "config.json").read_text()) if (tmp_path / "run" / "draft").exists() else None
    assert config is None
    assert pard2("train", "--resume", killed).code == 0
    first = tmp_path / "run" / "draft" / "config.json"
    first.write_text(json.dumps(json.loads(first.read_text()) | {"pard2_scale": 0.5}))
    second = (f"draft.path={killed}/draft", "draft.layers=null", f"loop.output={tmp_path}/second", "objective.draft_tokens=4")
    assert pard2("train", run_file, *second).code == 0
    assert pard2("train", "--resume", tmp_path / "second").code == 0


def test_a_draft_that_another_run_makes_is_no_model(pard2, run_file, tmp_path, monkeypatch):
    document = yaml.safe_load(run_file.read_text())
    document["draft"], document["loop"]["output"] = {"path": "../run/draft"}, "../second"
    second = run_file.with_name("second.yaml")
    second.write_text(yaml.safe_dump(document))
    (run_file.parent / "notes.yaml").write_text("- no run\n")
    monkeypatch.chdir(tmp_path)
    for command in (("train",), ("train", "--dry-run"), ("data", "cache")):
        error = pard2(*command, "recipes/second.yaml").error
        assert error == "draft.path run/draft is not there yet: it is made by `pard2 train recipes/run.yaml`"
    assert "no model 'other/run/draft'" in pard2("train", second, "draft.path=other/run/draft").error


def test_a_dry_run_prints_a_run_for_this_directory_alone(pard2, run_file, tmp_path):
    printed = pard2("train", run_file, "--dry-run").out
    (tmp_path / "elsewhere" / "again.yaml").write_text(printed)
    assert pard2("train", tmp_path / "elsewhere" / "again.yaml", "--dry-run").out == printed
