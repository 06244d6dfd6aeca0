"""`report`, and the page of `bench`: what is written and what a user can get wrong."""

import json
import shutil
from importlib import util
from xml.etree import ElementTree

import pytest

from pard2.bench.runner import Runner
from result_files import changed, suite, write_results


@pytest.fixture
def results(tmp_path):
    return write_results(tmp_path / "r.json", [suite("gsm8k")])


def test_page_and_pictures(pard2, results, tmp_path):
    done = pard2("report", results, "--html", tmp_path / "r.html", "--png", tmp_path / "png")
    assert done.code == 0 and done.out == "", done
    assert "r.html: " in done.err and "3 pictures" in done.err
    ElementTree.parse(tmp_path / "r.html")
    files = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert files == ["positions-1-gsm8k.png", "speed-1-gsm8k.png", "time-1.png"]
    assert all((tmp_path / "png" / name).read_bytes().startswith(b"\x89PNG") for name in files)


def test_without_outputs_it_prints_tables(pard2, results, tmp_path):
    other = write_results(tmp_path / "other.json", [suite("gsm8k")], {"d": ["pard2-td"], "e": ["eagle3"]})
    alone = pard2("report", results)
    assert alone.code == 0 and "pard2-ti" in alone.out and "2.53" in alone.out and "file" not in alone.out
    both = pard2("report", results, other)
    assert both.code == 0 and "r.json" in both.out and "other.json" in both.out and "eagle3" in both.out


def test_an_output_is_lost(pard2, results, tmp_path):
    html, mine = tmp_path / "r.html", tmp_path / "mine.html"
    assert pard2("report", results, "--html", html).code == 0
    before = html.read_bytes()
    assert "r.html exists; name another file, or give --force" in pard2("report", results, "--html", html).error
    assert html.read_bytes() == before and pard2("report", results, "--html", html, "--force").code == 0
    mine.write_text("<html>mine</html>")
    assert "mine.html is no report of pard2" in pard2("report", results, "--html", mine, "--force").error
    assert "it is the input itself" in pard2("report", results, "--html", results, "--force").error
    (tmp_path / "png").mkdir()
    (tmp_path / "png/time-1.png").write_bytes(b"mine")
    assert "time-1.png exists" in pard2("report", results, "--png", tmp_path / "png").error
    assert (tmp_path / "png/time-1.png").read_bytes() == b"mine"
    assert "r.json is a file; name a directory" in pard2("report", results, "--png", results).error


def test_bad_input_is_one_line_and_writes_nothing(pard2, results, tmp_path):
    html = tmp_path / "r.html"
    foreign, old = write_results(tmp_path / "foreign.json", [suite("gsm8k", words="tell")]), shutil.copy(results, tmp_path / "old.json")
    changed(old, lambda held: held["meta"].pop("hardware"))
    (tmp_path / "list.json").write_text("[]")
    for names, says in (
        (["none.json"], "cannot read"),
        (["list.json"], "is no result of `pard2 bench --json`"),
        (["old.json"], "old.json is of another version of `pard2 bench`, or damaged"),
        (["r.json", "r.json"], "is named twice"),
        (["r.json", "foreign.json"], "foreign.json has other prompts under the name of suite 'gsm8k' than r.json"),
    ):
        assert says in pard2("report", *(tmp_path / name for name in names), "--html", html).error
    assert not html.exists() and foreign.exists()


def test_missing_matplotlib_is_a_traceback_or_told_after_the_run(pard2, results, tmp_path, monkeypatch):
    find = util.find_spec
    monkeypatch.setattr("pard2.bench.plots.find_spec", lambda name: None if name == "matplotlib" else find(name))
    says = "pip install 'pard2[plot]'"
    assert says in pard2("report", results, "--html", tmp_path / "r.html").error
    assert says in pard2("report", results, "--png", tmp_path / "png").error
    assert pard2("report", results).code == 0


@pytest.fixture
def bench(pard2, target_directory, draft_directory, tmp_path):
    file = tmp_path / "small.jsonl"
    file.write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in ("hello", "yes")))
    models = ("-t", target_directory, "-d", draft_directory, "--dtype", "float32", "--device", "cpu")
    return lambda *options: pard2("bench", *models, "-s", file, "--max-new-tokens", 6, *options)


def test_bench_makes_the_page_that_report_makes(bench, pard2, tmp_path):
    json_file, html = tmp_path / "r.json", tmp_path / "b.html"
    assert bench("--json", json_file, "--html", html).code == 0
    assert pard2("report", json_file, "--html", tmp_path / "r.html").code == 0
    assert html.read_text() == (tmp_path / "r.html").read_text()
    assert bench("--json", json_file, "--html", html).code == 0  # the same command, whose page stays its own
    assert "b.html exists" in bench("--html", html).error


def test_interrupted_bench_has_no_page(bench, tmp_path, monkeypatch):
    measure, done = Runner.measure, []

    def once(*args):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return measure(*args)

    monkeypatch.setattr(Runner, "measure", once)
    html = tmp_path / "b.html"
    assert bench("--html", html).code == 130
    assert "this run was stopped before its end: 1 of 2 prompts of small" in html.read_text()
    other = tmp_path / "none.html"
    assert bench("--html", other).code == 130 and not other.exists()  # nothing was measured
