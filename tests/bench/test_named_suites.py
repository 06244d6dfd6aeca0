"""Suites by name: from the hub as it is published, or, without a network, prompts of our own."""

import io
import json
import urllib.error
import urllib.request
import warnings

import huggingface_hub
import pytest

from pard2.bench.named_suites import NAMED_SUITES
from pard2.bench.suites import check_suites, read_suites
from pard2.checkpoints import hub as hub_module
from pard2.checkpoints.hub import UnreachableError
from pard2.data.conversations import up_to_user
from pard2.data.records import read_records
from pard2.errors import Pard2Error, Pard2Warning

ROWS = {
    "gsm8k": {"question": "How many?", "answer": "#### 4"},
    "humaneval": {"task_id": "HumanEval/0", "prompt": "def f():\n    pass\n", "test": ""},
    "math500": {"problem": "Find $x$.", "answer": "4"},
    "mt_bench": {"question_id": 1, "prompt": ["First?", "Second?"]},
    "spec_bench": {"question_id": 1, "turns": ["First?", "Second?"]},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Data sets of one row each, as their publishers name the columns."""
    monkeypatch.setenv("PARD2_CACHE", str(tmp_path / "cache"))
    rows = {suite.origin: ROWS[name] for name, suite in NAMED_SUITES.items()}

    def download(repo, patterns, data_set):
        (file,), directory = patterns, tmp_path / repo / "snapshots" / "abc123"
        if hub_module._access.get().local_files_only:
            raise UnreachableError(file)
        path = directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".parquet"):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([rows[repo]]), path)
        else:
            path.write_text(json.dumps(rows[repo]) + "\n")
        return directory

    def answers(address, timeout):
        return io.BytesIO((json.dumps(rows[address]) + "\n").encode() if address in rows else b"the hub is there")

    monkeypatch.setattr(hub_module, "download", download)
    monkeypatch.setattr(urllib.request, "urlopen", answers)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return rows


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("PARD2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(("name", "asked"), [("gsm8k", "How many?"), ("humaneval", "def f():\n    pass\n```"), ("math500", "Find $x$.")])
def test_columns_of_the_hub_become_a_conversation(hub, name, asked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (suite,) = read_suites([name])
    (prompt,) = suite.prompts
    assert suite.name == name and suite.ids == (f"{name}-0",)
    assert [message["role"] for message in prompt] == ["user"] and prompt[0]["content"].endswith(asked)
    assert suite.as_dict()["source"] == f"{NAMED_SUITES[name].origin} abc123/{NAMED_SUITES[name].file}"


def test_later_turns_are_left_out_or_stand_alone(hub):
    (suite,) = read_suites(["mt_bench"])
    assert suite.ids == ("mt_bench-0", "mt_bench-0-2") and suite.follows == (None, 0)
    assert [prompt[-1]["content"] for prompt in suite.prompts] == ["First?", "Second?"]
    assert read_suites(["mt_bench"], most=1)[0].follows == ()


def test_a_file_at_an_address_is_fetched_again(hub, monkeypatch):
    real, asked = urllib.request.urlopen, []
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: asked.append(address) or real(address, timeout))
    for _ in range(2):
        (suite,) = read_suites(["spec_bench"])
        assert suite.name == "spec_bench" and suite.prompts[0][0]["content"] == "First?"
    assert asked == [NAMED_SUITES["spec_bench"].origin]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "called", "number"),
    [
        ("gsm8k", "own-arithmetic", "ten"),
        ("humaneval", "own-code", "ten"),
        ("math500", "own-mathematics", "ten"),
        ("mt_bench", "own-dialogue", "ten"),
        ("spec_bench", "own-mixed", "40"),
    ],
)
def test_without_a_network_our_own_prompts_pass_for_the_suite(name, called, number):
    with pytest.warns(Pard2Warning, match=f"no network: {number} prompts of our own in place of {name}"):
        (suite,) = read_suites([name])
    assert suite.name == called and len(suite.prompts) == (40 if name == "spec_bench" else 10)
    assert suite.as_dict()["source"] == f"written for pard2, in place of {name}"


def test_our_own_prompts_are_ten_of_a_kind_and_all_different():
    ids = set()
    for kind, turns in (("arithmetic", 1), ("code", 1), ("mathematics", 1), ("dialogue", 3)):
        from pard2.bench.named_suites import _OWN

        records = read_records(_OWN / f"{kind}.jsonl")
        assert len(records) == 10 and all(len(up_to_user(record)) == turns for record in records)
        ids |= {json.dumps(record["messages"]) for record in records}
    assert len(ids) == 40


def test_a_name_that_nobody_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Pard2Error, match="`suites` 'gsm9k': .*known are gsm8k, humaneval, math500, mt_bench, spec_bench, and a path to JSONL"):
        check_suites(["gsm8k", "gsm9k"])
    (tmp_path / "gsm9k").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    assert read_suites(["gsm9k"])[0].as_dict().keys() == {"name", "prompts", "digest"}


def test_the_hub_refuses(hub, monkeypatch):
    def refuse(*_, **__):
        raise UnreachableError("x") if hub_module._access.get().local_files_only else Pard2Error("'openai/gsm8k' is gated")

    monkeypatch.setattr(hub_module, "download", refuse)
    with pytest.raises(Pard2Error, match="`suites` gsm8k: 'openai/gsm8k' is gated; the path of a JSONL"):
        read_suites(["gsm8k"])


def test_an_address_refuses(hub, monkeypatch):
    def refuse(address, timeout):
        raise urllib.error.HTTPError(address, 404, "Not Found", {}, None)

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(Pard2Error, match="question.jsonl answers 404"):
        read_suites(["spec_bench"])
    assert read_suites(["gsm8k"])[0].name == "gsm8k"  # a hub that answers anything is there


@pytest.mark.parametrize("error", [urllib.error.URLError("Name or service not known"), TimeoutError(), ConnectionResetError()])
@pytest.mark.parametrize("name", ["gsm8k", "spec_bench"])
def test_a_network_that_is_down_is_waited_for(hub, monkeypatch, name, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.warns(Pard2Warning, match="no network"):
        assert read_suites([name])[0].name.startswith("own-")


def test_rows_of_another_form(hub):
    hub["openai/gsm8k"] = {"problem": "x"}
    with pytest.raises(Pard2Error, match="rows of another form than expected"):
        read_suites(["gsm8k"])
