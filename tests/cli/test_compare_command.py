"""`bench compare`: what is printed, and what a user can get wrong."""

import json
import shutil

import pytest

from result_files import changed, suite, write_results


def more_accepted(one, prompt):
    return 0 if one.method == "ar" else 200 + prompt


@pytest.fixture
def results(tmp_path):
    a = write_results(tmp_path / "a.json", [suite("gsm8k")])
    b = write_results(tmp_path / "b.json", [suite("gsm8k"), suite("mine")], ["pard2-td"], accepted=more_accepted)
    return a, b


def test_table_says_what_differs(pard2, results):
    done = pard2("bench", "compare", *results)
    assert done.code == 0, done
    lines = [line.split() for line in done.out.splitlines()]
    assert ["PARD-2", "TD", "2.53", "3.02", "+0.48", "(+0.47", "to", "+0.49)", "higher"] in lines
    assert ["PARD-2", "TD", "2.00", "2.00", "+0.00", "(+0.00", "to", "+0.00)", "not", "told", "apart"] in lines
    assert max(map(len, done.out.splitlines())) <= 80
    assert "only in a.json: gsm8k, PARD-2 TI, K auto" in done.err and "only in b.json: mine, PARD-2 TD" in done.err


def test_json_is_data_alone(pard2, results):
    held = json.loads(pard2("bench", "compare", *results, "--json").out)
    assert (held["a"], held["b"], held["notes"]) == ("a.json", "b.json", [])
    length, speed = held["differences"]
    assert length.items() >= {"suite": "gsm8k", "method": "pard2-td", "figure": "acceptance_length", "paired": True, "verdict": "higher"}.items()
    assert length["a"] == 2.53 and length["b"] == 3.015 and speed["figure"] == "speedup"
    assert [one["method"] for one in held["only"]["a.json"]] == ["pard2-ti"] and len(held["only"]["b.json"]) == 2


def test_speed_of_two_machines(pard2, results):
    changed(results[1], lambda held: held["meta"]["hardware"].update(cpu="Abacus"))
    done = pard2("bench", "compare", *results)
    assert "speed-up" not in done.out and "speed-ups are not compared: other machine; --any-machine does it all the same" in done.err
    assert "speed-up" in pard2("bench", "compare", *results, "--any-machine").out


def test_bad_input_is_one_line(pard2, results, tmp_path):
    a, _ = results
    assert "missing argument" in pard2("bench", "compare", a).error
    assert "cannot read" in pard2("bench", "compare", a, tmp_path / "none.json").error
    assert "is named twice" in pard2("bench", "compare", a, a).error
    other = write_results(tmp_path / "c.json", [suite("other")])
    assert "have no suite and method in common" in pard2("bench", "compare", a, other).error
    old = changed(shutil.copy(a, tmp_path / "old.json"), lambda held: held["plan"].update(tree=8))
    assert "old.json is of another version" in pard2("bench", "compare", a, old).error


def test_bench_itself_still_runs(pard2):
    """Its own first words are not taken for a command below it."""
    assert "no-such.jsonl" in pard2("bench", "-s", "no-such.jsonl").error
    assert "--any-machine" in pard2("bench", "compare", "--help").out and "--any-machine" not in pard2("bench", "--help").out
