"""`export --to hf` and its way to a hub, a stand-in on this machine, and back."""

import json

import huggingface_hub
import pytest
import torch
from hub_stub import NAME, serving

from bench_files import write_results
from pard2.checkpoints.draft_identity import draft_identity
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft

TOKEN = "hf_a-secret-that-nobody-may-read"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as hub:
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture
def results(draft_directory, tmp_path):
    return write_results(tmp_path / "r.json", str(draft_directory), draft_identity(draft_directory))


@pytest.fixture
def push(pard2, draft_directory, results, tmp_path):
    common = ("export", draft_directory, "--to", "hf", "-o", tmp_path / "card", "--push", NAME, "--results", results)
    return lambda *words: pard2(*common, *words)


def test_the_hub_gets_less_than_the_draft_and_its_card(push, hub, draft_directory, target_directory, tmp_path):
    result = push("-t", "org/target", "--license", "mit", "--json")
    assert result.code == 0 and json.loads(result.out)["page"] == f"{hub.url}/{NAME}", result
    assert TOKEN not in result.out + result.err
    card = (hub.directory / "README.md").read_text()
    assert f"# {NAME}\n" in card and "license: mit" in card and "base_model: org/target" in card
    assert {who for path, who in hub.asked if path.startswith("/api/repos")} == {f"Bearer {TOKEN}"}
    target = load_target(str(target_directory), "float32", "cpu", "plain")
    here, there = (load_draft(name, target, torch.float32, weight_format="plain") for name in (str(draft_directory), NAME))
    assert torch.equal(here.projection.weight, there.projection.weight)
    assert all(torch.equal(a, b) for a, b in zip(here.lm.parameters(), there.lm.parameters(), strict=True))


def test_a_card_that_says_too_little_is_uploaded(push, pard2, hub, draft_directory, tmp_path):
    assert "would say too little; add --license" in push("-t", "org/target").error
    assert "would say too little; add -t, the target's hub id" in push("--license", "mit", "-t", str(tmp_path)).error
    bare = ("export", draft_directory, "--to", "hf", "-o", tmp_path / "card", "--push", NAME, "-t", "org/target", "--license", "mit")
    assert "would say too little; add --results" in pard2(*bare).error
    assert not hub.asked and not (tmp_path / "card").exists()


def test_a_refused_token_is_printed_or_the_card_is_lost(push, hub, monkeypatch, tmp_path):
    hub.refusal = (403, {"X-Error-Message": "you may not"})
    words = ("-t", "org/target", "--license", "mit")
    error = push(*words).error
    assert "refuses your token" in error and "the right to write there" in error and TOKEN not in error
    assert (tmp_path / "card" / "README.md").exists()
    monkeypatch.delenv("HF_TOKEN")
    assert "takes 'org/tiny' from nobody without a token" in push(*words, "--force").error
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refusal = (500, {})
    assert "did not take 'org/tiny' (500)" in push(*words, "--force").error


def test_a_hub_that_is_away(push, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot reach http://127.0.0.1:9" in push("-t", "org/target", "--license", "mit").error


def test_without_a_push_the_files_stay_what_they_were(pard2, draft_directory, results, tmp_path):
    result = pard2("export", draft_directory, "--to", "hf", "-o", tmp_path / "card", "--results", results)
    assert result.code == 0 and draft_identity(tmp_path / "card") == draft_identity(draft_directory)
    assert "README.md" in {file.name for file in (tmp_path / "card").iterdir()}
