"""What the chat template gets beside the messages is the same in every command, is written down, and
is told where it differs."""

import io
import json
import shutil

import pytest
import yaml

from chat_tokenizer import byte_tokenizer
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.write import save_draft
from pard2.cli.template_args import parse_template_args
from pard2.data.records import read_records
from pard2.engine.engine import Engine
from pard2.errors import Pard2Error
from tiny import tiny_draft

# As Qwen3's: with thinking off, more stands before the answer. And the name of a tool.
TEMPLATE = (
    "{{ tools[0].name if tools }}{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and thinking is defined and not thinking %}(off){% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if thinking is defined and not thinking %}(off){% endif %}{% endif %}"
)
BARE = len("<|start|>user\nhi<|end|>\n<|start|>assistant\n") - len("<|start|>") * 2 - len("<|end|>") + 3
OFF, TOOL = len("(off)"), len("clock")
ARG = ("--template-arg", "thinking=false")
ROWS = [{}, {"chat_template_kwargs": {"thinking": False}}, {"chat_template_kwargs": {"thinking": True}}, {"tools": [{"name": "clock"}]}]
LENGTHS = {(): [BARE, BARE + OFF, BARE, BARE + TOOL], ARG: [BARE + OFF, BARE + OFF, BARE, BARE + OFF + TOOL]}


@pytest.fixture(scope="module")
def thinker(target_directory, tmp_path_factory):
    directory = tmp_path_factory.mktemp("thinker") / "target"
    shutil.copytree(target_directory, directory)
    byte_tokenizer(TEMPLATE).save_pretrained(directory)
    return directory


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "eval_prompts.jsonl"
    rows = [{"id": f"p{n}", "messages": [{"role": "user", "content": "hi"}], **row} for n, row in enumerate(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def lengths(monkeypatch):
    """Tokens of each prompt that an engine is asked."""
    found, real = [], Engine._request

    def request(self, *arguments):
        made = real(self, *arguments)
        found.append(len(made.sequences[0].prompt))
        return made

    monkeypatch.setattr(Engine, "_request", request)
    return found


@pytest.mark.parametrize("options", [(), ARG], ids=["none", "thinking=false"])
@pytest.mark.parametrize("command", ["generate", "verify", "bench", "regenerate"])
def test_a_records_own_arguments_and_tools_reach_the_template(command, options, pard2, thinker, prompts, lengths, tmp_path):
    """Half of the commands dropped them: a draft trained without thinking was benched with it."""
    commands = {
        "generate": ("generate", "--prompts", prompts),
        "verify": ("verify", "--prompts", prompts, "--samples", 0, "--batch-size", 1),
        "bench": ("bench", "-s", prompts, "--json", tmp_path / "r.json"),
        "regenerate": ("data", "regenerate", "-i", prompts, "-o", tmp_path / "out.jsonl"),
    }
    result = pard2(*commands[command], "-t", thinker, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", 2, *options)
    assert result.code == 0, result
    assert lengths[-4:] == LENGTHS[options]
    if command == "bench":
        (suite,) = json.loads((tmp_path / "r.json").read_text())["plan"]["suites"]
        assert suite["chat_template_kwargs"] == (
            [{"thinking": False}, {"thinking": True}] if options else [{}, {"thinking": False}, {"thinking": True}]
        )
        other = pard2(*commands[command], "-t", thinker, "--dtype", "float32", "--max-new-tokens", 2, *(() if options else ARG))
        assert "holds a run with another suites" in other.error
    if command == "regenerate":
        records = read_records(tmp_path / "out.jsonl")
        assert records[0].get("chat_template_kwargs") == ({"thinking": False} if options else None)
        assert records[2]["chat_template_kwargs"] == {"thinking": True}
        assert records[0]["settings"].get("template_arguments") == ({"thinking": False} if options else None)
        other = pard2(*commands[command], "-t", thinker, "--max-new-tokens", 2, *(() if options else ARG))
        assert other.error.count("--template-arg") == 3


def test_a_prompt_of_the_command_line_and_a_conversation_have_arguments_too(pard2, thinker, lengths, monkeypatch):
    common = ("-t", thinker, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", 2)
    assert pard2("generate", "-p", "hi", *ARG, *common).code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert pard2("chat", *ARG, *common).code == 0
    assert pard2("verify", "--samples", 0, "--batch-size", 1, *ARG, *common).code == 0
    del lengths[1]  # chat's first pass, which nobody sees
    assert lengths[:3] == [BARE + OFF, BARE + OFF, BARE + OFF - 2 + len("Explain in three sentences why the sky is blue.")]
    assert "--raw leaves the chat template away" in pard2("generate", "-p", "hi", "--raw", *ARG, *common).error


@pytest.mark.parametrize(
    ("word", "value"),
    [("false", False), ("False", False), ("3", 3), ('"3"', "3"), ("null", None), ('{"a": [1]}', {"a": [1]})]
    + [(text, text) for text in ("", "text", "note: no", "2026-01-02", "a=b", "[")],
)
def test_values_are_json_or_text(word, value):
    assert parse_template_args([f"x={word}"]) == {"x": value}


def test_what_is_no_argument_is_refused_in_one_line(pard2, thinker, prompts, tmp_path):
    for words, message in ((["x"], "NAME=VALUE"), (["a b=1"], "NAME=VALUE"), (["x=1", "x=2"], "names x twice")):
        with pytest.raises(Pard2Error, match=message):
            parse_template_args(words)
    misspelt = "--template-arg thinkin (data.chat_template_kwargs): the chat template reads no such argument; did you mean thinking?"
    out, more = tmp_path / "out", ("--dtype", "float32", "--template-arg", "thinkin=false")
    for command in (
        ("generate", "-p", "hi", *more),
        ("chat", *more),
        ("verify", *more),
        ("bench", "-s", prompts, *more),
        ("data", "regenerate", "-i", prompts, "-o", out, *more),
        ("data", "synthesize", "-n", 1, "-o", out, *more),
        ("data", "preview", prompts, *more[2:]),
        ("data", "prepare", prompts, "-o", out, *more[2:]),
    ):
        assert pard2(*command, "-t", thinker).error == misspelt
        assert not out.exists()
    assert "it reads thinking" in pard2("generate", "-p", "hi", "-t", thinker, "--template-arg", "messages=1").error


def test_what_a_record_says_in_vain_is_noted(pard2, thinker, tmp_path):
    path = tmp_path / "f.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    path.write_text(json.dumps({"messages": turns, "chat_template_kwargs": {"thinkin": False}}) + "\n")
    result = pard2("generate", "--prompts", path, "-t", thinker, "--max-new-tokens", 2)
    assert result.code == 0 and "the chat template reads no thinkin, which records give it" in result.err
    shown = pard2("data", "preview", path, "-t", thinker)
    assert "1 conversations with `chat_template_kwargs` or `tools` that the chat template does not read" in shown.out


def test_preview_prepare_and_train_make_the_same_tokens(pard2, thinker, tmp_path):
    data, made = tmp_path / "data.jsonl", tmp_path / "made"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    data.write_text("".join(json.dumps({"id": str(n), "messages": turns}) + "\n" for n in range(3)))
    assert "assistant\n(off)⟦yes" in pard2("data", "preview", data, "-t", thinker, *ARG).out
    assert pard2("data", "prepare", data, "-t", thinker, "-o", made, *ARG).code == 0
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["chat_template_kwargs"] == {"thinking": False} and manifest["arguments"] == [{"thinking": False}]
    document = {
        "target": {"name": str(thinker)},
        "draft": {"layers": 1},
        "data": {"train": [str(data)], "max_length": 100, "chat_template_kwargs": {"thinking": False}, "evaluation": str(data)},
        "loop": {"output": str(tmp_path / "run"), "steps": 1, "rows_per_step": 1, "device": "cpu", "evaluation_prompts": 2, "evaluation_tokens": 2},
        "objective": {"draft_tokens": 4},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))

    def planned(*overrides):
        result = pard2("train", tmp_path / "run.yaml", "--dry-run", "--json", *overrides)
        assert result.code == 0, result
        return json.loads(result.out)["plan"]["data"]

    without = planned("data.chat_template_kwargs=null")["tokens"]
    assert planned()["tokens"] == planned(f"data.train=[{made}]")["tokens"] == without + 3 * OFF == manifest["counts"]["tokens"]
    refused = pard2("train", tmp_path / "run.yaml", "--dry-run", f"data.train=[{made}]", "data.chat_template_kwargs=null")
    assert 'was prepared with --template-arg {"thinking": false}, and data.chat_template_kwargs is {}' in refused.error
    assert "did you mean thinking?" in pard2("train", tmp_path / "run.yaml", "--dry-run", "data.chat_template_kwargs={thinkin: 1}").error
    # A held-out prompt of another kind is told.
    data.write_text("".join(json.dumps(row | {"chat_template_kwargs": {"thinking": n == 0}}) + "\n" for n, row in enumerate(read_records(data))))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"messages": turns, "chat_template_kwargs": {"thinking": None}}) + "\n")
    key = "evaluation prompts with `chat_template_kwargs` that no training conversation has"
    assert planned()["notes"] == {} and planned(f"data.evaluation={other}")["notes"] == {key: 1}

    assert pard2("train", tmp_path / "run.yaml").code == 0
    draft = tmp_path / "run" / "draft"
    assert json.loads((draft / "config.json").read_text())["pard2_chat_template_kwargs"] == [{"thinking": True}, {"thinking": False}]
    told = "the draft was trained with the template arguments"
    common = ("-p", "hi", "-t", thinker, "-d", draft, "--max-new-tokens", 2)
    assert told not in pard2("generate", *common, *ARG).err
    result = pard2("generate", *common)
    assert result.code == 0 and f'{told} {{"thinking": true}} and {{"thinking": false}}, and this is none' in " ".join(result.err.split())


def test_a_draft_of_unknown_training_is_not_complained_about(pard2, thinker, tmp_path):
    save_draft(tiny_draft(load_target(str(thinker), "float32", "cpu"), [0, 2], mask_token=258), tmp_path / "draft")
    result = pard2("generate", "-p", "hi", "-t", thinker, "-d", tmp_path / "draft", "--max-new-tokens", 2, *ARG)
    assert result.code == 0 and "trained with" not in result.err
