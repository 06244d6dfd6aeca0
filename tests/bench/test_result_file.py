"""Result files: whole at every moment, and gone on with by the same plan alone."""

import dataclasses
import json

import pytest
from bench_plans import AR, TD, measurement, plan, suite

from pard2.bench.measurement import Answer
from pard2.bench.plan import Chunk
from pard2.bench.result_file import ResultFile, write_result
from pard2.errors import Pard2Error


def small_plan(**more):
    return plan(suite(prompts=2), methods=("pard2-td",), ks=(4,), **more)


def chunk_of(index):
    chunk = Chunk("gsm8k", 0, 1, index, 1)
    return [measurement(one, chunk, 10, seconds, [Answer(11, 10, 0, True)]) for one, seconds in ((AR, 10.0), (TD, 5.0))]


def test_what_was_measured_before_is_lost(tmp_path):
    first = ResultFile(tmp_path / "r.json", small_plan())
    first.add(chunk_of(0))
    second = ResultFile(tmp_path / "r.json", small_plan())
    assert second.measurements == first.measurements and second.done == {Chunk("gsm8k", 0, 1, 0, 1)}
    second.add(chunk_of(1))
    held = json.loads((tmp_path / "r.json").read_text())
    assert list(held)[:2] == ["meta", "results"]
    assert {"argv", "commit", "versions", "hardware", "date"} <= set(held["meta"]) and len(held["meta"]["resumed"]) == 1
    assert [(r["method"], r["prompts"]) for r in held["results"]] == [("ar", 2), ("pard2-td", 2)]


def test_kill_while_writing_leaves_half_a_file(tmp_path, monkeypatch):
    file = ResultFile(tmp_path / "r.json", small_plan())
    file.add(chunk_of(0))
    before = (tmp_path / "r.json").read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", _killed)
    with pytest.raises(KeyboardInterrupt):
        file.add(chunk_of(1))
    assert (tmp_path / "r.json").read_bytes() == before


def _killed(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("change", "named"), [({"new_tokens": 11}, "max_new_tokens"), ({"seed": 1}, "seed"), ({"heats": (1.0,)}, "configurations")])
def test_results_of_two_plans_are_mixed(tmp_path, change, named):
    ResultFile(tmp_path / "r.json", small_plan()).add(chunk_of(0))
    with pytest.raises(Pard2Error, match=f"another {named}.*`force`"):
        ResultFile(tmp_path / "r.json", small_plan(**change))
    assert ResultFile(tmp_path / "r.json", small_plan(**change), replace=True).done == set()


def test_results_of_two_drafts_of_one_name_are_mixed(tmp_path):
    one, other = (dataclasses.replace(small_plan(), draft_identity=name) for name in ("one", "other"))
    ResultFile(tmp_path / "r.json", one).add(chunk_of(0))
    with pytest.raises(Pard2Error, match=r"holds a run with another draft of that name"):
        ResultFile(tmp_path / "r.json", other)


def test_an_older_file_cannot_be_gone_on_with_or_is_taken_for_this_drafts(tmp_path):
    path = tmp_path / "r.json"
    ResultFile(path, small_plan()).add(chunk_of(0))
    held = json.loads(path.read_text())
    del held["plan"]["draft_identity"]
    path.write_text(json.dumps(held))
    again = ResultFile(path, dataclasses.replace(small_plan(), draft_identity="one"))
    again.add(chunk_of(1))
    assert len(again.done) == 2 and json.loads(path.read_text())["plan"]["draft_identity"] is None


def test_results_of_two_machines_are_mixed(tmp_path):
    path = tmp_path / "r.json"
    ResultFile(path, small_plan()).add(chunk_of(0))
    held = json.loads(path.read_text())
    held["meta"]["hardware"]["cores"] = 77
    path.write_text(json.dumps(held))
    with pytest.raises(Pard2Error, match="another hardware"):
        ResultFile(path, small_plan())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"meta": {}, "plan": {}, "chunks": [{}]}', "\xff"])
def test_somebody_elses_file_is_overwritten(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(Pard2Error, match="no result of `pard2 bench`"):
        ResultFile(path, small_plan())
    assert path.read_text(encoding="latin-1") == text


def test_place_that_cannot_be_written_is_found_after_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Pard2Error, match="`path`: cannot write"):
        ResultFile(tmp_path / "file" / "r.json", small_plan())
    with pytest.raises(Pard2Error, match="`path`: cannot read"):
        ResultFile(tmp_path, small_plan())


def test_file_of_a_script_is_no_json(tmp_path):
    write_result(tmp_path / "new" / "r.json", {"date": "d"}, [{"a": 1}, {"a": 2}], more=[], other=[1])
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == {"meta": {"date": "d"}, "results": [{"a": 1}, {"a": 2}], "more": [], "other": [1]}


DAMAGE = {
    "a plan that is a number": lambda held: held.update(plan=5),
    "a plan that is a list": lambda held: held.update(plan=[]),
    "no plan at all": lambda held: held.update(plan={}),
    "resumed 5": lambda held: held["meta"].update(resumed=5),
    "resumed a text": lambda held: held["meta"].update(resumed="abc"),
    "meta a list": lambda held: held.update(meta=[]),
    "chunks 5": lambda held: held.update(chunks=5),
    "a chunk twice": lambda held: held["chunks"].append(held["chunks"][0]),
    "half a chunk": lambda held: held["chunks"].pop(),
    "another configuration": lambda held: held["chunks"][0]["configuration"].update(method="vsd"),
    "fewer answers": lambda held: held["chunks"][0].update(answers=[]),
    "an unknown field": lambda held: held["chunks"][0].update(more=1),
    "an unknown field of a chunk": lambda held: held["chunks"][0]["chunk"].update(more=1),
    "no seconds": lambda held: held["chunks"][0].pop("seconds"),
    "seconds that are no number": lambda held: held["chunks"][0].update(seconds=float("nan")),
    "times that are infinite": lambda held: held["chunks"][0]["totals"].update(decode_seconds=float("inf")),
    "tokens that are a text": lambda held: held["chunks"][0]["totals"].update(tokens="5"),
    "tokens that are true": lambda held: held["chunks"][0]["totals"].update(tokens=True),
    "an answer of three": lambda held: held["chunks"][0]["answers"][0].pop(),
    "an answer whose equality is a number": lambda held: held["chunks"][0]["answers"][0].__setitem__(3, 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_believed(tmp_path, damage):
    path = tmp_path / "r.json"
    ResultFile(path, small_plan()).add(chunk_of(0))
    held = json.loads(path.read_text())
    DAMAGE[damage](held)
    path.write_text(json.dumps(held))
    with pytest.raises(Pard2Error, match="name another file") as caught:
        ResultFile(path, small_plan())
    assert "\n" not in str(caught.value)
    assert ResultFile(path, small_plan(), replace=True).done == set()


def test_deep_file_is_a_traceback(tmp_path):
    (tmp_path / "r.json").write_text('{"meta":' * 100_000)
    with pytest.raises(Pard2Error, match="no result of `pard2 bench`"):
        ResultFile(tmp_path / "r.json", small_plan())
