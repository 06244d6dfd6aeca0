"""Models of the hub: downloaded, pinned to a revision, and whatever stands in the way told in one line."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_stub import COMMIT, NAME, Hub, serving

from chat_tokenizer import VOCABULARY, byte_tokenizer
from pard2 import Engine, Pard2Error, SamplingParams
from pard2.checkpoints import hub as hub_module
from pard2.checkpoints.hub import UnreachableError, accessing, report_downloads
from pard2.checkpoints.loading import load_config, load_target, parse_dtype
from pard2.data.sources import open_source
from tiny import tiny_model

REPOSITORY_NOT_FOUND = {"X-Error-Code": "RepoNotFound"}
GATED = {"X-Error-Code": "GatedRepo"}
BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    tiny_model(vocab=VOCABULARY).bfloat16().save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "hf" / "hub"


@pytest.fixture
def hub(directory, cache, monkeypatch) -> Iterator[Hub]:
    with serving(directory) as hub:
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(cache.parent / "token"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def refused(name: str = NAME) -> str:
    with pytest.raises(Pard2Error) as caught:
        load_target(name, "float32", "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_is_downloaded_and_says_which_commit_it_is(hub, cache, capfd):
    target = load_target(NAME, "float32", "cpu")
    assert target.commit == COMMIT and target.name == NAME
    assert target.tokenizer.get_vocab() == byte_tokenizer().get_vocab()
    served = tiny_model(vocab=VOCABULARY).bfloat16().float().state_dict()
    assert all(torch.equal(weight, served[key]) for key, weight in target.model.state_dict().items())
    assert (cache / "models--org--tiny/snapshots" / COMMIT / "model.safetensors").is_file()
    assert "".join(capfd.readouterr()) == "", "a library shows no bars"


def test_a_config_alone_needs_no_weights(hub):
    load_config(NAME)
    assert not [path for path, _ in hub.asked if path.endswith(".safetensors")]


def test_a_revision_is_asked_for_and_named(hub):
    assert load_target(f"{NAME}@v1", "float32", "cpu").name == f"{NAME}@v1"
    assert {path for path, _ in hub.asked if "/revision/" in path} == {f"/api/models/{NAME}/revision/v1"}
    assert refused(f"{NAME}@v2") == f"'{NAME}' has no revision 'v2'; see {hub.url}/{NAME}/commits for its branches, tags and commits"


def test_what_is_on_this_disk_has_no_revisions(directory):
    for name in ("smollm2", str(directory)):
        with pytest.raises(Pard2Error, match=f"{re.escape(repr(name))} is on this disk, and only a model of the hub has revisions; leave `revision`"):
            load_config(f"{name}@main")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("open_card", [False, True], ids=["all", "files"])
def test_a_gated_model_names_its_licence_and_how_to_log_in(hub, status, open_card, monkeypatch):
    """The hub shows everybody what a gated model is, and its files to those who were admitted."""
    hub.refusal, hub.open_card = (status, GATED), open_card
    page = f"{hub.url}/{NAME}"
    assert refused() == f"'{NAME}' is gated: accept its licence at {page}, then log in with `hf auth login`, or set HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert refused() == f"'{NAME}' is gated, and your token may not read it: ask for access at {page}, with a token that may read gated models"


def test_an_id_that_nobody_has_or_that_is_private(hub, monkeypatch):
    where = f"no model 'org/none' at {hub.url}: there is no such id, or "
    assert refused("org/none") == where + "it is private: log in with `hf auth login`, or set HF_TOKEN"
    hub.refusal = 401, REPOSITORY_NOT_FOUND  # what the hub says to whoever is not logged in
    assert refused("org/none") == where + "it is private: log in with `hf auth login`, or set HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert refused("org/none") == where + "your token may not read it"


@pytest.mark.parametrize(("status", "headers"), [(401, BAD_TOKEN), (403, {})])
def test_a_token_that_is_refused(hub, status, headers, monkeypatch):
    hub.refusal = status, headers
    assert refused().startswith(f"{hub.url} gives '{NAME}' to nobody without a token ({status}): log in")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    assert refused() == f"{hub.url} refuses HF_TOKEN ({status}); make another at {hub.url}/settings/tokens"
    with accessing("hf_given", False):
        assert refused().startswith(f"{hub.url} refuses `token` ({status})")
    assert {who for _, who in hub.asked} == {None, "Bearer hf_old", "Bearer hf_given"}


def test_a_hub_that_is_down_or_that_no_network_leads_to(hub, monkeypatch):
    hub.refusal = 500, {}
    assert refused() == f"{hub.url} answered 500 for '{NAME}'; try again later"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert re.fullmatch(
        rf"cannot reach http://127.0.0.1:9 for '{NAME}' \(.*refused.*\); check the network, HF_ENDPOINT and proxies, and try again", refused()
    )


def test_without_a_network_a_copy_is_used_and_where_there_is_none_it_says_how_to_get_one(hub, cache, monkeypatch):
    how = f"no model '{NAME}' in {cache}, or not the whole of it, and {{}} allows no download; where there is a network: hf download {NAME}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refused() == how.format("HF_HUB_OFFLINE")
    assert refused(f"{NAME}@v1").endswith(f"hf download {NAME} --revision v1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with accessing(None, True):
        assert refused() == how.format("`local_files_only`")
    load_config(NAME)  # a part of it
    with accessing(None, True):
        assert refused() == how.format("`local_files_only`")
    load_target(NAME, "float32", "cpu")
    hub.asked.clear()
    with accessing(None, True):
        assert load_target(NAME, "float32", "cpu").commit == COMMIT and not hub.asked
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert load_target(NAME, "float32", "cpu").commit == COMMIT


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk of {} is full; make room for 'org/tiny' there, or let HF_HOME name a directory on another disk"),
        (errno.EACCES, "cannot write into {}: Permission denied; let HF_HOME name another directory"),
    ],
)
def test_a_disk_that_takes_nothing(hub, cache, monkeypatch, number, says):
    def failing(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    assert refused() == says.format(cache)


def test_a_large_download_tells_its_size_its_place_and_how_far_it_is(hub, cache, monkeypatch):
    told: list = []

    @contextmanager
    def reporter(name, size, place):
        told.append((name, size, place))
        yield told.append

    monkeypatch.setattr(hub_module, "_WORTH_A_BAR", 10_000)
    report_downloads(reporter)
    try:
        load_target(NAME, "float32", "cpu")
        size = told[-1]
        assert size > (hub.directory / "model.safetensors").stat().st_size
        assert told[0] == (NAME, size, cache) and told[1:] == sorted(told[1:])
        told.clear()
        load_target(NAME, "float32", "cpu")
        assert told == [], "it is there already"
    finally:
        report_downloads(None)


def test_a_data_set_is_a_model_to_the_hub(hub, cache, monkeypatch):
    """Its page, its name in an error, and how it is downloaded by hand are others."""

    def data_set(name: str) -> str:
        with pytest.raises(Pard2Error) as caught:
            hub_module.download(name, ["config.json"], data_set=True)
        assert isinstance(caught.value, UnreachableError) == ("hf download" in str(caught.value))
        return str(caught.value)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert data_set(f"{NAME}@v1").endswith(f"where there is a network: hf download {NAME} --repo-type dataset --revision v1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert data_set("org/none").startswith(f"no data set 'org/none' at {hub.url}: there is no such id, or it is private")
    directory = hub_module.download(NAME, ["config.json"], data_set=True)
    assert directory == cache / "datasets--org--tiny/snapshots" / COMMIT and hub_module.commit_of(directory) == COMMIT
    assert [file.name for file in directory.iterdir()] == ["config.json"]
    hub.refusal = 403, GATED
    assert (
        data_set(f"{NAME}@v2")
        == f"'{NAME}@v2' is gated: accept its licence at {hub.url}/datasets/{NAME}, then log in with `hf auth login`, or set HF_TOKEN"
    )


def test_rows_of_a_data_set_that_the_hub_refuses(hub, monkeypatch, tmp_path):
    """The reader's own words tell neither the page nor the way out."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    hub.refusal = 401, GATED
    with pytest.raises(Pard2Error) as caught:
        open_source(f"{NAME}:test")
    way = f"accept its licence at {hub.url}/datasets/{NAME}, then log in with `hf auth login`, or set HF_TOKEN"
    assert str(caught.value) == f"cannot load data set '{NAME}:test': '{NAME}' is gated: {way}, and there is no local file of that name"


def test_from_pretrained_says_who_asks_for_which_revision(hub):
    engine = Engine.from_pretrained(NAME, dtype="auto", device="cpu", revision="v1", token="hf_given", method="ar")
    assert {who for _, who in hub.asked} == {"Bearer hf_given"} and any(path.endswith("/revision/v1") for path, _ in hub.asked)
    assert engine.target.commit == COMMIT and parse_dtype("auto", f"{NAME}@v1") == torch.bfloat16
    hub.asked.clear()
    again = Engine.from_pretrained(NAME, revision="v1", device="cpu", local_files_only=True)
    assert not hub.asked and again.generate("hi", SamplingParams(max_tokens=2))[0].finish_reason == "length"


@pytest.mark.slow
def test_the_command_line_says_what_it_downloads_and_what_is_refused(directory, tmp_path):
    with serving(directory) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        program = "import pard2.checkpoints.hub as hub; hub._WORTH_A_BAR = 10_000; from pard2.cli.main import main; main()"
        command = [sys.executable, "-c", program, "generate", "-t", NAME, "--revision", "v1", "-p", "hi", "--max-new-tokens", "2", "--device", "cpu"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        first, last = (line for line in done.stderr.splitlines() if line.startswith("download"))
        assert re.fullmatch(rf"downloading {NAME}@v1: \d MB to {tmp_path}/hub", first) and last.startswith(f"downloaded {NAME}@v1 in ")
        hub.refusal = 403, GATED
        command[3:6] = ["draft", "info", NAME]
        done = subprocess.run([*command[:6]], env=environment | {"HF_HOME": str(tmp_path / "other")}, capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        said = f"error: '{NAME}' is gated: accept its licence at {hub.url}/{NAME}, then log in with `hf auth login`, or set HF_TOKEN"
        assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [said]
