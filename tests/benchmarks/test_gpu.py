"""The script for a GPU, tried in small on the CPU: every part runs, and one that fails
or hangs costs nobody else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpu

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sizes():
    return gpu.Sizes(small=True)


def rows(part, sizes):
    found = list(gpu.PARTS[part][0](sizes))
    assert json.loads(json.dumps(found)) == found
    return found


def test_a_cycle_lacks_a_time_or_its_floor(sizes):
    head, *found = rows("cycles", sizes)
    assert head["read_bytes_per_second"] > 0
    assert [(one["batch_size"], one["draft_tokens"]) for one in found] == [(1, 0), (1, 4), (2, 0), (2, 4)]
    for one in found:
        assert 0 < one["verify_milliseconds"] < one["milliseconds"] <= one["slowest_milliseconds"]
        assert one["over_floor"] == pytest.approx(one["milliseconds"] / one["floor_milliseconds"])
    for plain, drafted in zip(found[::2], found[1::2], strict=True):
        assert drafted["draft_milliseconds"] > 2 * plain["draft_milliseconds"] > 0
    assert found[1]["floor_milliseconds"] > found[0]["floor_milliseconds"] and found[3]["over_plain"] > 1


@pytest.mark.parametrize("part", ["equality", "trees"])
def test_a_text_differs(part, sizes):
    found = rows(part, sizes)
    assert {one["method"] for one in found} >= {"pard2-ti", "pard2-td"} and {one["batch_size"] for one in found} == {1, 2}
    assert all(one["equal"] == one["equal_sampled"] == one["prompts"] == 2 for one in found)
    assert all((one["acceptance_length"] > 1) == (one["method"] != "ar") for one in found)


def test_a_profile_names_no_function(sizes, capfd):
    found = rows("profile", sizes)
    assert len(found) == gpu.TOP and all(one["where"] == "host" and one["function"] and one["calls_a_cycle"] > 0 for one in found)
    assert "Self CPU" in capfd.readouterr().out


def test_a_training_step_has_no_speed(sizes):
    (one,) = rows("training", sizes)
    assert one["tokens_per_second"] == pytest.approx(one["tokens"] / one["seconds"]) and one["tokens"] <= sizes.row < 2 * one["tokens"]


def test_answers_are_not_counted(sizes):
    (one,) = rows("regenerate", sizes)
    assert 0 < one["tokens"] <= 2 * one["batch_size"] * sizes.answer_tokens and one["tokens_per_second"] != 0


def test_the_host_is_not_timed(sizes):
    assert {one["batch_size"] for one in rows("host", sizes)} == {1, 2}


def test_the_embedded_pair_is_left_out_unsaid(sizes, monkeypatch):
    monkeypatch.delenv("PARD2_GGUF", raising=False)
    assert rows("embedded", sizes) == [{"left_out": "no GGUF file at hand"}]


def test_decoders_stay_as_an_engine_changed_them():
    target, draft = gpu.random_pair(gpu.Sizes(small=True))
    before = target.decoder, draft.decoder
    with gpu.new_engine(target, draft, "pard2-td", False, max_batch=1, draft_tokens=2, cache_tokens=64):
        target.decoder = None
    assert (target.decoder, draft.decoder) == before


def test_the_parts_take_more_than_eight_minutes():
    assert sum(limit for _, limit in gpu.PARTS.values()) < 480


def test_a_part_that_fails_or_hangs_is_noted_with_what_it_had_said(tmp_path):
    file = gpu.ResultFile(tmp_path / "gpu.json", small=True)
    row = """print('{"part": "one", "figure": 1}', flush=True)\n"""
    gpu.run_part("hangs", [sys.executable, "-c", row + "import time\ntime.sleep(60)"], 2, file)
    gpu.run_part("fails", [sys.executable, "-c", row + "raise SystemExit('out of memory')"], 60, file)
    gpu.run_part("done", [sys.executable, "-c", row], 60, file)
    held = json.loads((tmp_path / "gpu.json").read_text())
    assert held["results"] == [{"part": "one", "figure": 1}] * 3 and held["small"] and held["meta"]["versions"]
    assert {name: part["status"] for name, part in held["parts"].items()} == {"hangs": "stopped after 2 s", "fails": "failed", "done": "done"}
    assert held["parts"]["fails"]["said"] == ["out of memory"] and "said" not in held["parts"]["done"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_script_runs_from_anywhere(tmp_path):
    result = tmp_path / "gpu.json"
    words = ["sh", str(ROOT / "benchmarks" / "gpu.sh"), "--small", "--parts", "host", "--json", str(result)]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHON": sys.executable}
    done = subprocess.run(words, env=bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held = json.loads(result.read_text())
    assert held["parts"]["host"]["status"] == "done" and {one["part"] for one in held["results"]} == {"host"}
