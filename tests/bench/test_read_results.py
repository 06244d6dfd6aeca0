"""Result files, read for reports: what was measured comes back, and what is none of them is refused."""

import json

import pytest
from bench_plans import AR, TD, measurement, plan, suite

from pard2.bench.measurement import Answer
from pard2.bench.plan import Chunk
from pard2.bench.read_results import read_results
from pard2.bench.result_file import ResultFile
from pard2.errors import Pard2Error


@pytest.fixture
def path(tmp_path):
    path, chunk = tmp_path / "r.json", Chunk("gsm8k", 0, 1, 0, 1)
    file = ResultFile(path, plan(suite(prompts=2), methods=("pard2-td",), ks=(4,)))
    file.add([measurement(AR, chunk, 10, 10.0, [Answer(11, 10, 0, True)]), measurement(TD, chunk, 10, 5.0, [Answer(11, 5, 5, True)])])
    return path


def test_reading_changes_what_was_measured(path):
    read, held = read_results(path), json.loads(path.read_text())
    assert read.results == held["results"] and read.meta == held["meta"] and read.plan == held["plan"]
    assert read.digests == {"gsm8k": suite(prompts=2).digest} and read.name == "r.json"


def changed(path, change):
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda held: held.pop("chunks"), "no result of `pard2 bench"),
        (lambda held: held["plan"].update(tree=8), "another version"),
        (lambda held: held["plan"].pop("suites"), "another version"),
        (lambda held: held["chunks"][0].update(more=1), "another version"),
        (lambda held: held["meta"].pop("date"), "another version"),
        (lambda held: held["plan"].update(suites=[3]), "another version"),
        (lambda held: held.update(chunks=[]), "no measurements yet"),
    ],
)
def test_a_file_that_is_something_else_is_read(path, change, says):
    changed(path, change)
    with pytest.raises(Pard2Error, match=says):
        read_results(path)


def test_a_missing_or_broken_file_ends_in_a_traceback(tmp_path):
    with pytest.raises(Pard2Error, match="cannot read"):
        read_results(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(Pard2Error, match="is no JSON"):
        read_results(tmp_path / "broken.json")
