"""`bench`: what it writes and prints, and what a user can get wrong."""

import csv
import io
import json
import shutil

import huggingface_hub.constants
import pytest

from pard2.bench import named_suites
from pard2.checkpoints.draft_identity import draft_identity


@pytest.fixture
def suite_file(tmp_path):
    file = tmp_path / "eval_small.jsonl"
    records = [{"id": str(i), "messages": [{"role": "user", "content": text}]} for i, text in enumerate(("hello", "hi there", "yes"))]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.fixture
def bench(pard2, target_directory, suite_file):
    common = ("bench", "-t", target_directory, "-s", suite_file, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", 6, "--prompts", 2)
    return lambda *options: pard2(*common, *options)


def test_results_and_table(bench, draft_directory, lm_directory, tmp_path):
    options = ("-d", draft_directory, "-m", "pard,pard2-ti,pard2-td", "--batch-size", "1,2", "--draft-tokens", "auto,2", "--temperature", "0,1")
    result = bench(*options, "--json", tmp_path / "r.json")
    assert result.code == 0, result
    held = json.loads((tmp_path / "r.json").read_text())
    assert len(held["results"]) == 2 * 2 * (1 + 3 * 2)
    assert {r["suite"] for r in held["results"]} == {"small"} and {r["prompts"] for r in held["results"]} == {2}
    assert all(r["equal_outputs"] == 2 for r in held["results"])
    assert "28 configurations x 2 prompts" in result.err and "336 tokens at most" in result.err and "at most about" in result.err
    assert result.out.count("pard2-td") == 8 and "speed-up" in result.out


def test_same_command_goes_on_and_another_is_refused(bench, tmp_path):
    assert bench("--json", tmp_path / "r.json").code == 0
    before = (tmp_path / "r.json").read_bytes()
    again = bench("--json", tmp_path / "r.json")
    assert again.code == 0 and "2 of 2 chunks are there" in again.err and (tmp_path / "r.json").read_bytes() == before
    assert "another max_new_tokens" in bench("--json", tmp_path / "r.json", "--max-new-tokens", 5).error
    assert bench("--json", tmp_path / "r.json", "--max-new-tokens", 5, "--force").code == 0


def test_default_method_is_the_drafts_best(bench, draft_directory, lm_directory):
    assert "pard2-td" in bench("-d", draft_directory).out
    assert "vsd" in bench("-d", lm_directory).out


def test_bad_input_is_one_line_with_the_flag(bench, draft_directory, lm_directory, suite_file, tmp_path):
    draft = ("-d", draft_directory)
    assert "-m 'fast' is not one of" in bench(*draft, "-m", "ar,fast").error
    assert "needs a draft" in bench("-m", "pard2-td").error
    assert "--batch-size '1,x'" in bench("--batch-size", "1,x").error
    assert "--batch-size 0" in bench("--batch-size", "1,0").error
    assert "--temperature -1.0" in bench("--temperature", "-1").error
    assert "--draft-tokens 7" in bench(*draft, "--draft-tokens", "auto,7").error
    assert "--draft-tokens 'many'" in bench(*draft, "--draft-tokens", "many").error
    assert "has no mask token" in bench("-d", lm_directory, "-m", "pard2-td").error
    assert "cannot read" in bench("-s", tmp_path / "none.jsonl").error
    assert "another suite is called 'small'" in bench("-s", f"{suite_file},{suite_file}").error
    (tmp_path / "mute.jsonl").write_text('{"id": "7", "messages": [{"role": "system", "content": "x"}]}\n')
    assert "record 7 has no user message" in bench("-s", tmp_path / "mute.jsonl").error
    (tmp_path / "other.json").write_text("{}")
    assert "no result of `pard2 bench`" in bench("--json", tmp_path / "other.json").error


def test_refused_run_leaves_a_file(bench, draft_directory, tmp_path):
    bench("-d", draft_directory, "--draft-tokens", "7", "--json", tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_several_drafts_run_in_turn(bench, draft_directory, lm_directory, tmp_path):
    file = tmp_path / "r.json"
    result = bench("-d", f"new={draft_directory}", "-d", lm_directory, "--json", file)
    assert result.code == 0, result
    held = json.loads(file.read_text())
    assert held["plan"]["draft"] == {"new": str(draft_directory), "lm": str(lm_directory)}
    assert held["plan"]["draft_identity"] == {"new": draft_identity(draft_directory), "lm": draft_identity(lm_directory)}
    assert [(r["method"], r["draft"]) for r in held["results"]] == [("ar", None), ("pard2-td", "new"), ("vsd", "lm")]
    assert [c["configuration"].get("draft") for c in held["chunks"]] == [None, "new", "lm"] * 2  # chunk by chunk
    assert "draft" in result.out and "new" in result.out and "lm" in result.out
    before = file.read_bytes()
    assert bench("-d", f"new={draft_directory}", "-d", lm_directory, "--json", file).code == 0 and file.read_bytes() == before


def test_a_method_that_no_draft_can_ends_the_others(bench, draft_directory, lm_directory, tmp_path):
    """Each draft gets the methods that it can carry out; what nobody can is named."""
    file = tmp_path / "r.json"
    words = ("-d", f"new={draft_directory}", "-d", lm_directory, "-m", "ngram,vsd,pard2-td,eagle3", "--tree", "0,4", "--json", file)
    result = bench(*words)
    assert result.code == 0 and "left out: eagle3, which none of the drafts can" in result.err
    ways = [(one["method"], one.get("draft"), one["tree"]) for one in json.loads(file.read_text())["results"]]
    assert ways == [("ar", None, 0), ("ngram", None, 0), ("pard2-td", "new", 0), ("pard2-td", "new", 4), ("vsd", "lm", 0)]
    assert bench("-d", f"new={draft_directory}", "-d", lm_directory, "-m", "vsd", "--json", file, "--force").code == 0
    assert [(one["method"], one["draft"]) for one in json.loads(file.read_text())["results"]] == [("ar", None), ("vsd", "new"), ("vsd", "lm")]
    alone = bench("-d", lm_directory, "-m", "vsd,pard2-td")
    assert alone.code == 0 and "left out: -m pard2-td: draft" in alone.err and "has no mask token" in alone.err
    assert "has no mask token" in bench("-d", lm_directory, "-m", "pard2-td,ar").error


def test_one_draft_has_no_name_in_the_file(bench, draft_directory, tmp_path):
    assert bench("-d", f"new={draft_directory}", "--json", tmp_path / "r.json").code == 0
    held = json.loads((tmp_path / "r.json").read_text())
    assert held["plan"]["draft_identity"] == draft_identity(draft_directory)
    assert held["plan"]["draft"] == str(draft_directory) and "draft" not in held["results"][0]
    assert all("draft" not in one for one in (*held["plan"]["configurations"], *(chunk["configuration"] for chunk in held["chunks"])))


def test_drafts_that_cannot_be_told_apart(bench, draft_directory):
    assert "another draft is called 'draft' already; name them" in bench("-d", draft_directory, "-d", draft_directory).error
    assert "not of the form NAME=DRAFT" in bench("-d", "a=", "-d", "b=x").error


def test_formats_for_papers(bench, draft_directory):
    rows = list(csv.DictReader(io.StringIO(bench("-d", draft_directory, "--format", "csv").out)))
    assert [row["method"] for row in rows] == ["ar", "pard2-td"] and float(rows[1]["tokens_per_second"]) > 0
    lines = bench("-d", draft_directory, "--format", "markdown").out.splitlines()
    assert lines[0].endswith("small, batch 1, K auto, temperature 0") and lines[2].startswith("| method | tokens/s | speed-up (95 %) |")
    assert lines[4].startswith("| ar |") and lines[5].startswith("| pard2-td |")
    assert "--format 'latex' is not one of table, markdown, csv" in bench("--format", "latex").error


def test_a_suite_by_name_without_a_network(bench, tmp_path, monkeypatch):
    """The results cannot be taken for the suite's."""
    monkeypatch.setenv("PARD2_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(named_suites, "_OWN", tmp_path)  # the tiny model reads no prompt as long as ours
    (tmp_path / "arithmetic.jsonl").write_text('{"messages": [{"role": "user", "content": "2+2"}]}\n' * 10)
    result = bench("-s", "gsm8k", "--json", tmp_path / "r.json")
    assert result.code == 0 and "no network: ten prompts of our own in place of gsm8k" in result.err and "own-arithmetic" in result.out
    held = json.loads((tmp_path / "r.json").read_text())
    assert held["plan"]["suites"][0]["source"] == "written for pard2, in place of gsm8k" and held["results"][0]["suite"] == "own-arithmetic"
    unknown = bench("-s", "gsm8k,gsm9k").error
    assert unknown.startswith("-s 'gsm9k': there is no suite of that name; known are gsm8k, ") and unknown.endswith("a path to JSONL works, too")


def test_a_result_names_the_commits_of_models_of_the_hub(pard2, target_directory, draft_directory, suite_file, tmp_path, monkeypatch):
    """As downloads leave them; two revisions are two models."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name, directory, commit in (("target", target_directory, "a" * 40), ("draft", draft_directory, "b" * 40)):
        cache = tmp_path / f"models--org--{name}"
        shutil.copytree(directory, cache / "snapshots" / commit)
        (cache / "refs").mkdir()
        (cache / "refs/v1").write_text(commit)
    models = ("-t", "org/target", "--revision", "v1", "-d", "org/draft@v1", "--device", "cpu", "--max-new-tokens", 4)
    assert pard2("bench", *models, "-s", suite_file, "--json", tmp_path / "r.json").code == 0
    plan = json.loads((tmp_path / "r.json").read_text())["plan"]
    assert (plan["target"], plan["draft"]) == ("org/target@v1", "org/draft@v1")
    assert plan["commits"] == {"org/target@v1": "a" * 40, "org/draft@v1": "b" * 40}
    for command in (("generate", "-p", "hi"), ("verify", "--samples", 0, "--prompts", suite_file)):
        assert json.loads(pard2(*command, *models, "--json").out)["commits"] == plan["commits"]
    assert json.loads(pard2("generate", "-p", "hi", "-t", target_directory, *models[6:], "-m", "ar", "--json").out)["commits"] is None
