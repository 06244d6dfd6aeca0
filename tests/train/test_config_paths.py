"""Relative paths of a run lead from its YAML file, those of a command line from the working directory."""

from pathlib import Path

import pytest
import yaml

from pard2.config import TrainConfig
from pard2.config_file import absolute, load_config

RUN = {
    "target": {"name": "org/target"},
    "draft": {"path": "../runs/first/draft"},
    "data": {"train": ["../data/a.jsonl", "org/name:train", "-", "*.parquet"], "evaluation": "held-out.jsonl.gz"},
    "features": {"cache": "states"},
    "loop": {"output": "../runs/second", "steps": 10},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "recipes" / "run.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(RUN))
    return path


def paths(config: TrainConfig) -> dict[str, object]:
    data = config.data
    return {
        "draft": config.draft.path,
        "train": data.train,
        "evaluation": data.evaluation,
        "cache": config.features.cache,
        "output": config.loop.output,
    }


@pytest.mark.parametrize("where", ["elsewhere", "."])
def test_a_run_is_found_from_its_own_directory_alone(run, tmp_path, monkeypatch, where):
    (tmp_path / where).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / where)
    beside = tmp_path / "recipes"
    assert paths(load_config(run)) == {
        "draft": f"{tmp_path}/runs/first/draft",
        "train": [f"{tmp_path}/data/a.jsonl", "org/name:train", "-", f"{beside}/*.parquet"],
        "evaluation": f"{beside}/held-out.jsonl.gz",
        "cache": f"{beside}/states",
        "output": f"{tmp_path}/runs/second",
    }


def test_a_short_path_becomes_a_long_one(run, tmp_path, monkeypatch):
    """What is told of a run is told in the words of its user."""
    monkeypatch.chdir(tmp_path)
    found = paths(load_config("recipes/run.yaml"))
    assert found["output"] == "runs/second" and found["train"][0] == "data/a.jsonl" and found["evaluation"] == "recipes/held-out.jsonl.gz"
    assert paths(absolute(load_config("recipes/run.yaml"))) == paths(load_config(run))


def test_an_override_leads_from_the_file(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(run, ["loop.output=mine", "data.train=[mine.jsonl]", "draft.path=./mine"])
    assert (config.loop.output, config.data.train, config.draft.path) == ("mine", ["mine.jsonl"], "./mine")


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("org/name", False),
        ("smollm2", False),
        ("gpt2", False),
        ("/abs/olute", False),
        ("there", True),
        ("there/model", True),
        ("./org/name", True),
        ("runs/first/draft", True),
        ("model.gguf", True),
    ],
)
def test_a_hub_id_is_taken_for_a_path_or_a_path_for_one(run, name, is_path):
    (run.parent / "there" / "model").mkdir(parents=True)
    run.write_text(yaml.safe_dump(RUN | {"target": {"name": name}}))
    expected = str((run.parent / name).resolve()) if is_path else name
    assert load_config(run).target.name == expected


def test_a_split_of_a_directory_is_no_path(run):
    (run.parent / "set").mkdir()
    run.write_text(yaml.safe_dump(RUN | {"data": {"train": ["set:test", "org/set", "org/set/config:test"]}}))
    assert load_config(run).data.train == [f"{run.parent}/set:test", "org/set", "org/set/config:test"]


def test_a_directory_whose_name_is_a_pattern(tmp_path):
    path = tmp_path / "a[b]" / "run.yaml"
    path.parent.mkdir()
    (path.parent / "x.jsonl").touch()
    path.write_text(yaml.safe_dump(RUN | {"data": {"train": ["*.jsonl"]}}))
    assert [found.name for found in Path("/").glob(load_config(path).data.train[0].lstrip("/"))] == ["x.jsonl"]


def test_wrong_types_are_found_by_the_schema_alone(run):
    run.write_text(yaml.safe_dump(RUN | {"loop": {"output": 5, "steps": 10}}))
    with pytest.raises(Exception, match="loop.output"):
        load_config(run)
    run.write_text("target: 5\ndraft: null\n")
    with pytest.raises(Exception, match="target"):
        load_config(run)
