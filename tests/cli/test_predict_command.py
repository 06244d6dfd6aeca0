"""`predict`: what it prints, the files of times that it reads, and what a user can get wrong."""

import json
from pathlib import Path

import pytest

from pard2.bench.plan import Configuration
from pard2.bench.predict.times_file import read_times
from pard2.cli.output import output_console
from predict_worlds import simulated, write_results

RESULTS = Path(__file__).parents[2] / "docs" / "results"
GOLDEN = Path(__file__).parents[1] / "golden" / "tables"
OWN = {"target": {"rows": [1, 16], "ms": [7.0, 8.5]}, "draft": {"rows": [8], "ms": [2.5]}, "other_ms": 0.5}


def way(method, k, batch=1, draft=None):
    return Configuration(method=method, batch_size=batch, draft_tokens=k, temperature=0.0, draft=draft)


@pytest.fixture(scope="module")
def runs():
    plain = [simulated(way("ar", 0, batch), prompts=4) for batch in (1, 4)]
    return [*plain, *(simulated(way("pard2-td", k, batch), prompts=4, seed=k) for k in (2, 4) for batch in (1, 4))]


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results") / "r.json", *runs)


@pytest.fixture
def times(tmp_path):
    def write(**changes):
        path = tmp_path / "times.json"
        path.write_text(json.dumps(OWN | changes))
        return path

    return write


def test_a_table_looks_otherwise(pard2, file, times, monkeypatch):
    """Looked at by a person; after a change that is meant, write the new text into the file."""
    monkeypatch.delenv("COLUMNS", raising=False)
    for name, more in (("predict", ()), ("predict_times", ("--times", times(name="a larger machine")))):
        shown = pard2("predict", file, *more).out
        assert shown == (GOLDEN / f"{name}.txt").read_text(), name
        assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown


def test_json_says_something_else_than_the_table(pard2, file):
    held = json.loads(pard2("predict", file, "--batch-size", "4", "--json").out)
    assert held["results"] == "r.json" and held["times"] is None
    assert [(one["method"], one["batch_size"], one["draft_tokens"]) for one in held["predictions"]] == [
        ("ar", 4, 0),
        *(("pard2-td", 4, k) for k in (1, 2, 3, 4)),
    ]
    for one in held["predictions"]:
        seconds = one["draft_seconds"] + one["verify_seconds"] + one["other_seconds"]
        assert one["tokens_per_second"] == pytest.approx(4 * one["acceptance_length"] / seconds)
        assert (one["measured_tokens_per_second"] is not None) == (one["draft_tokens"] in (2, 4))
    assert held["left_out"]["configurations"] + held["left_out"]["impossible"] == 4
    assert sum(one["best"] for one in held["predictions"]) == 1


def test_times_of_another_target_are_not_its_own(pard2, file, times):
    """By hand: a cycle of K 4 verifies 5 rows, its draft's pass has one time whatever its rows."""
    held = json.loads(pard2("predict", file, "--times", times(), "--draft-tokens", "4", "--json").out)
    plain, four = held["predictions"]
    assert held["times"] == "times.json" and held["left_out"] is None and four["measured_tokens_per_second"] is None
    assert plain["tokens_per_second"] == pytest.approx(1000 / 7.5)
    assert four["verify_seconds"] == pytest.approx(0.0074) and four["draft_seconds"] == 0.0025 and four["other_seconds"] == 0.0005
    assert four["tokens_per_second"] == pytest.approx(four["acceptance_length"] / 0.0104)
    assert four["speedup"] == pytest.approx(four["tokens_per_second"] / plain["tokens_per_second"])
    plainer = json.loads(pard2("predict", file, "--times", times(plain_other_ms=3.0), "--json").out)["predictions"][0]
    assert plainer["tokens_per_second"] == pytest.approx(100)
    by_sequences = times(
        target={"rows": [1, 5, 4, 20], "sequences": [1, 1, 4, 4], "ms": [7, 8, 9, 9.5]}, draft={"rows": [30], "sequences": [4], "ms": [3]}
    )
    held = json.loads(pard2("predict", file, "--times", by_sequences, "--batch-size", "4", "--draft-tokens", "4", "--json").out)
    assert held["predictions"][1]["verify_seconds"] == pytest.approx(0.0095)


def test_the_tables_of_docs_results_cannot_be_read(pard2, file):
    """Both kinds: our own form, and what benchmarks/gpu.py wrote."""
    for name, sizes in (("gpu.json", "1,8,32"), ("times_llama_8b.json", "1")):
        held = json.loads(pard2("predict", file, "--times", RESULTS / name, "--batch-size", sizes, "--draft-tokens", "2,4", "--json").out)
        found = {(one["batch_size"], one["draft_tokens"]): one for one in held["predictions"]}
        assert len(found) == 3 * len(sizes.split(","))
        assert 0.0065 < found[1, 0]["verify_seconds"] < 0.0078 and 0.002 < found[1, 4]["draft_seconds"] < 0.0032
    times = read_times(RESULTS / "gpu.json")
    assert (times.target.least, times.target.most, times.target.most_sequences) == (1, 288, 32)  # 32 sequences of 1 + 8 rows
    assert (times.drafts[None].least, times.drafts[None].most) == (8, 256)  # nothing is accepted, so a draft reads one token
    gpu = json.loads((RESULTS / "gpu.json").read_text())["results"]
    (row,) = (one for one in gpu if (one.get("arm"), one.get("batch_size"), one.get("draft_tokens")) == ("graphs", 32, 0) and one["part"] == "cycles")
    held = json.loads(pard2("predict", file, "--times", RESULTS / "gpu.json", "--batch-size", "32", "--json").out)
    seconds = sum(held["predictions"][0][f"{part}_seconds"] for part in ("draft", "verify", "other"))
    assert 1000 * seconds == pytest.approx(row["milliseconds"], rel=0.02)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"draft": None}, "is no file of times: draft: "),
        ({"target": {"rows": [1, 16], "ms": [7.0]}}, "is no file of times: target: lists of one length, and not empty, are needed; write {"),
        ({"target": {"rows": [], "ms": []}}, "target: lists of one length, and not empty"),
        ({"target": {"rows": [1, -16], "ms": [7.0, 8.0]}}, "target.rows.1: input should be greater than 0"),
        ({"target": {"rows": [1, "16"], "ms": [7.0, 8.0]}}, "target.rows.1: input should be a valid number"),
        ({"speed": 3}, "is no file of times: speed: "),
    ],
)
def test_times_of_another_form_are_read(pard2, file, times, changes, says):
    assert says in pard2("predict", file, "--times", times(**changes)).error


def test_what_is_no_file_of_times(pard2, file, tmp_path):
    assert "cannot read" in pard2("predict", file, "--times", tmp_path / "none.json").error
    (tmp_path / "list.json").write_text("[1]")
    assert "is no file of times" in pard2("predict", file, "--times", tmp_path / "list.json").error
    (tmp_path / "gpu.json").write_text(json.dumps({"parts": {}, "results": [{"part": "host"}]}))
    assert "holds no cycles with a draft" in pard2("predict", file, "--times", tmp_path / "gpu.json").error
    (tmp_path / "gpu.json").write_text(json.dumps({"parts": {}, "results": [{"part": "cycles", "arm": "eager", "draft_tokens": 8}]}))
    assert "is no file of times" in pard2("predict", file, "--times", tmp_path / "gpu.json").error


def test_bad_input_is_one_line_with_the_flag(pard2, file, times, tmp_path):
    assert pard2("predict", file, "--draft-tokens", "5").error == (
        "--draft-tokens 5: r.json tells of pard2-td on gsm8k up to K 4; ask for less, or measure with more"
    )
    assert "--draft-tokens 0: at least 1 is needed" in pard2("predict", file, "--draft-tokens", "0").error
    assert "--draft-tokens 'many' is not a list of numbers" in pard2("predict", file, "--draft-tokens", "many").error
    assert "-s/--suite" not in pard2("predict", file, "-s", "mt_bench").error
    assert pard2("predict", file, "-s", "mt_bench").error == "-s 'mt_bench' is not in r.json; it holds gsm8k"
    assert pard2("predict", file, "-m", "vsd").error == "-m 'vsd' is not in r.json; it holds pard2-td"
    assert pard2("predict", file, "-d", "new").error.startswith("-d 'new' is not in r.json; its only draft has no name")
    assert pard2("predict", file, "--tree", "8").error.startswith("--tree 8: r.json holds no trees of pard2-td on gsm8k")
    far = pard2("predict", file, "--batch-size", "64").error
    assert "batch 64, K 0, needs larger passes of the target than r.json has times of: up to 20 rows" in far and far.endswith("or measure more")
    assert "not of 2; ask" in pard2("predict", file, "--times", times(), "--batch-size", "2").error  # sequences
    assert "--batch-size 0: at least 1" in pard2("predict", file, "--batch-size", "0").error
    assert "cannot read" in pard2("predict", tmp_path / "none.json").error
    assert "is no result of `pard2 bench --json`" in pard2("predict", RESULTS / "gpu.json").error
    old = json.loads(file.read_text())
    old["plan"]["tree"] = 8
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert "another version of `pard2 bench`" in pard2("predict", tmp_path / "old.json").error


def test_drafts_of_one_file_are_mixed_up(pard2, runs, tmp_path):
    two = [simulated(way("pard2-td", 3, draft=name), prompts=4, seed=seed) for seed, name in enumerate(("old", "new"))]
    file = write_results(tmp_path / "two.json", *runs[:2], *two)
    shown = pard2("predict", file).out
    assert "gsm8k, pard2-td of old, temperature 0" in shown and "gsm8k, pard2-td of new, temperature 0" in shown
    assert "of old" not in pard2("predict", file, "-d", "new").out
    assert "-d 'third' is not in two.json; it holds old, new" in pard2("predict", file, "-d", "third").error


def test_a_narrow_terminal_cuts_the_table(pard2, file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    shown = pard2("predict", file).out
    assert max(map(len, shown.splitlines())) <= 60 and "…" not in shown and output_console().width == 60
