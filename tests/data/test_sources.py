"""Sources of rows: each kind gives the same rows with locations of their own, and fails in one line."""

import builtins
import json
import re
import sys

import pyarrow
import pyarrow.parquet
import pytest

from pard2.data.records import RecordWriter, read_records
from pard2.data.sources import open_source
from pard2.errors import Pard2Error

ROWS = [
    {"id": "a", "messages": [{"role": "user", "content": "u", "name": "Ann"}, {"role": "assistant", "content": "é\u2028"}], "source": "x"},
    {"id": "b", "messages": [{"role": "user", "content": "v"}], "source": "y"},
]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return path


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A `load_dataset` that knows one data set and records its calls; it uses no network."""
    import datasets

    asked = []

    def load_dataset(name, config=None, *, split):
        asked.append((name, config, split))
        if name == "org/none":
            raise ConnectionError("Couldn't reach the Hub\nlong story")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    return asked


def test_every_kind_of_source_gives_the_same_records(jsonl, parquet, hub):
    """Columns fill what a row lacks with nulls; a chat template would see a name that nobody has."""
    for source in (jsonl, parquet, "org/name"):
        assert read_records(source) == ROWS
        opened = open_source(source)
        assert opened.count == 2 and [where for where, _ in opened.rows()] == [f"{source}:1", f"{source}:2"]
        assert list(opened.rows()) == list(opened.rows())
    assert open_source(jsonl).file == jsonl and open_source("org/name").file is None


def test_a_data_set_has_a_configuration_and_a_split(hub):
    for name in ("org/name", "org/name:test", "org/name/main", "org/name/main:test"):
        open_source(name)
    assert hub == [("org/name", None, "train"), ("org/name", None, "test"), ("org/name", "main", "train"), ("org/name", "main", "test")]


def test_a_local_path_wins_over_a_data_set_of_its_name(hub, jsonl, tmp_path):
    (tmp_path / "org").mkdir()
    jsonl.rename(tmp_path / "org" / "name")
    assert read_records("org/name") == ROWS and hub == []


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(hub):
    """The hub's answer to a mistyped path would be a riddle, and would take a while."""
    for name in ("data/rows.jsonl", "data/rows.parquet", "rows", "./data/rows", "../data/rows", "/data/rows"):
        with pytest.raises(Pard2Error, match=f"cannot read {name}: .*No such file"):
            open_source(name)
    assert hub == []


def test_a_data_set_that_cannot_be_loaded_is_one_line(hub, monkeypatch):
    """The hub is asked what is wrong; where it finds nothing, the reader's own words stand."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Pard2Error) as info:
        open_source("org/none")
    assert re.fullmatch(
        "cannot load data set 'org/none': no data set 'org/none' in .*, or not the whole of it, and HF_HUB_OFFLINE allows no download; "
        "where there is a network: hf download org/none --repo-type dataset, and there is no local file of that name",
        str(info.value),
    )
    monkeypatch.setattr("pard2.checkpoints.hub.download", lambda *_, **__: None)
    with pytest.raises(Pard2Error) as info:
        open_source("org/none")
    assert str(info.value) == "cannot load data set 'org/none': Couldn't reach the Hub, and there is no local file of that name"


def test_a_directory_is_read_as_a_data_set(tmp_path, monkeypatch):
    """The real `load_dataset`, on files."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    directory = tmp_path / "set"
    directory.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [r["id"] for r in read_records(directory)] == ["a", "b"]
    assert read_records(f"{directory}:test") == ROWS[:1]
    with pytest.raises(Pard2Error, match="cannot load data set .*:none'"):
        open_source(f"{directory}:none")


@pytest.mark.parametrize("name", ["rows.parquet", "org/name"])
def test_a_missing_package_names_the_extra(parquet, monkeypatch, name):
    real = builtins.__import__

    def without(module, *rest, **options):
        if module.split(".")[0] in ("pyarrow", "datasets"):
            raise ImportError(module)
        return real(module, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.chdir(parquet.parent)
    with pytest.raises(Pard2Error, match="pip install 'pard2\\[train\\]'") as caught:
        open_source(name)
    assert ("there is no local file of that name" in str(caught.value)) == (name == "org/name")


def test_a_data_set_that_fails_on_the_way_is_one_line(hub, monkeypatch):
    """Pictures whose decoder is not installed, say."""
    source = open_source("org/name")
    monkeypatch.setattr("pard2.data.sources._without_nulls", lambda row: 1 / 0)
    with pytest.raises(Pard2Error, match="cannot read data set 'org/name': division by zero"):
        list(source.rows())


def test_importing_sources_does_not_import_their_readers():
    """The command line imports this module for its help."""
    import subprocess

    code = "import sys; import pard2.data.records; print({'pyarrow', 'datasets', 'torch', 'numpy', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_damaged_files_are_one_line(tmp_path, parquet):
    whole = parquet.read_bytes()
    for content in (b"my notes", whole[:-9], whole[:20] + b"\x00" * 60 + whole[80:]):
        parquet.write_bytes(content)
        with pytest.raises(Pard2Error, match="cannot read .*rows.parquet"):
            read_records(parquet)
    (tmp_path / "deep.jsonl").write_text("[" * 200_000)
    with pytest.raises(Pard2Error, match="deep.jsonl:1 is nested too deeply"):
        read_records(tmp_path / "deep.jsonl")


def test_columns_that_are_carried_along_may_hold_what_json_cannot(tmp_path):
    import datetime

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROWS[0] | {"day": datetime.date(2026, 1, 2)}]), path)
    with RecordWriter(tmp_path / "out.jsonl") as writer:
        writer.write(read_records(path))
    assert read_records(tmp_path / "out.jsonl")[0]["day"] == "2026-01-02"
