"""`card`: the README.md of a draft, from the command line."""

import json
import shutil

import pytest
import yaml

from bench_files import write_results
from pard2.checkpoints.draft_identity import draft_identity
from pard2.checkpoints.embedded import EMBEDDED_DRAFT_DIRECTORY
from test_docs import ROOT


@pytest.fixture
def draft(draft_directory, tmp_path):
    shutil.copytree(draft_directory, tmp_path / "draft")
    return tmp_path / "draft"


def front_of(path):
    return yaml.safe_load(path.read_text().split("---\n")[1])


def test_a_measured_draft_gets_its_card(pard2, draft, target_directory, tmp_path):
    """What `bench` writes is what `card` reads, several files after one flag included."""
    prompts = tmp_path / "small.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n' * 2)
    common = ("bench", "-t", target_directory, "-s", prompts, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", 4)
    assert pard2(*common, "-d", draft, "--json", tmp_path / "a.json").code == 0
    assert pard2(*common, "-d", draft, "-m", "pard2-ti", "--json", tmp_path / "b.json").code == 0
    result = pard2("card", draft, "--results", tmp_path / "a.json", tmp_path / "b.json", "--license", "mit", "--dataset", "org/one", "--name", "me/d")
    assert result.code == 0 and result.out == "" and "does not say which weights" not in result.err, result
    text = (draft / "README.md").read_text()
    assert "# me/d\n" in text and text.count("small (2) | PARD-2 TD") == 2 and text.count("small (2) | PARD-2 TI") == 2
    assert front_of(draft / "README.md")["license"] == "mit" and front_of(draft / "README.md")["datasets"] == ["org/one"]
    assert str(tmp_path) not in text
    assert sorted(path.name for path in draft.glob(".*")) == []  # no lock, no half of a file


def test_results_of_another_draft(pard2, draft, lm_directory, tmp_path):
    file = write_results(tmp_path / "r.json", "draft", draft_identity(lm_directory))
    assert "r.json is of another draft (draft), whose weights or config are not those of" in pard2("card", draft, "--results", file).error
    held = json.loads(file.read_text())
    for damage in ("{}", "no json", json.dumps(held | {"chunks": [{}]})):
        file.write_text(damage)
        assert "r.json" in pard2("card", draft, "--results", file).error
    assert "cannot read" in pard2("card", draft, "--results", tmp_path / "none.json").error
    assert not (draft / "README.md").exists()


def test_an_older_file_is_taken_without_a_word(pard2, draft, tmp_path):
    result = pard2("card", draft, "--results", write_results(tmp_path / "r.json", "draft", None))
    assert result.code == 0 and "note: r.json does not say which weights it measured" in result.err
    assert "note: no licence is stated; name one with --license" in result.err
    assert "note: the target's hub id is not known; name it with -t" in result.err


def test_a_card_by_hand_is_lost(pard2, draft):
    card = draft / "README.md"
    assert pard2("card", draft).code == 0
    before = card.read_text()
    assert f"{card} exists; give --force to write it anew, or name another file with -o" in pard2("card", draft).error
    assert pard2("card", draft, "--force", "--license", "mit").code == 0 and card.read_text() != before
    card.write_text("# years of work\n")
    assert "was not written by `pard2 card`, so --force will not replace it" in pard2("card", draft, "--force").error
    assert card.read_text() == "# years of work\n"
    assert "it is the input itself" in pard2("card", draft, "--notes", card, "-o", card, "--force").error
    assert pard2("card", draft, "--notes", card, "-o", draft.parent / "card.md").code == 0
    assert "# years of work" in (draft.parent / "card.md").read_text()


def test_what_cannot_be_a_draft_or_a_statement(pard2, draft, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in pard2("card", tmp_path / "empty").error
    assert not list((tmp_path / "empty").iterdir())
    for name in ("smollm2", "org/draft", tmp_path / "none"):
        assert "is not a directory of yours to write into; name a file with -o" in pard2("card", name).error
    assert "no model 'org/draft' in" in pard2("card", "org/draft", "-o", tmp_path / "card.md").error
    assert "results are named with --results" in pard2("card", draft, "r.json").error
    assert "--license 'Apache 2.0' is no identifier" in pard2("card", draft, "--license", "Apache 2.0").error
    assert "-t '/no/model' is neither a directory nor a hub id" in pard2("card", draft, "-t", "/no/model").error
    assert "cannot write" in pard2("card", draft, "-o", tmp_path).error


def test_the_shipped_card_is_not_what_is_made_now(pard2, tmp_path):
    """Of its directory and these results; whoever changes either writes it anew, by this command."""
    results = [ROOT / "docs/results" / name for name in ("embedded_pair_gpu.json", "draft_sixth.json")]
    assert pard2("card", "smollm2", "--results", *results, "-o", tmp_path / "card.md").code == 0
    again = (
        "cd docs/results; pard2 card ../../src/pard2/assets/smollm2-draft --name smollm2 --results embedded_pair_gpu.json draft_sixth.json --force"
    )
    assert (tmp_path / "card.md").read_text() == (EMBEDDED_DRAFT_DIRECTORY / "README.md").read_text(), f"run: {again}"
