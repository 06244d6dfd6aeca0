"""Rows that nobody can learn or answer: refused where they stand, in one line, by
everything that reads records."""

import json
import os
import threading

import pytest

from chat_tokenizer import byte_tokenizer
from pard2.data import conversations
from pard2.data.examples import load_examples
from pard2.data.records import read_records
from pard2.errors import Pard2Error

GOOD = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}'
DEEP = "[" * 100_000
HALF = "holds \\ud83d, half of a surrogate pair"


def turns(*messages, **columns):
    return json.dumps({"messages": [{"role": "user", "content": "hi"}, *messages], **columns})


def call(arguments):
    return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


BAD = {
    "half a character": ('{"messages": [{"role": "user", "content": "a\\ud83d b"}]}', HALF),
    "half a character in a role": ('{"messages": [{"role": "\\ud83d", "content": "b"}]}', HALF),
    "half a character in an id": ('{"id": "\\ud83d", "text": "once upon"}', HALF),
    "half a character in a key": ('{"\\ud83d": 1, "text": "once upon"}', HALF),
    "half a character in what is carried along": ('{"x": ["\\ud83d"], "text": "once upon"}', HALF),
    "half a character in arguments": (turns(call('{"a": "\\ud83d"}')), f"message 2 {HALF}"),
    "deep": (DEEP, "is nested too deeply"),
    "deep tools": (turns(tools=DEEP), "is nested too deeply"),
    "deep template arguments": (turns(chat_template_kwargs='{"a":' * 100_000), "is nested too deeply"),
    "deep arguments": (turns(call(DEEP)), "message 2 is nested too deeply"),
    "deep function call": (json.dumps({"conversations": [{"from": "function_call", "value": DEEP}]}), "message 1 is nested too deeply"),
    "many digits": ('{"text": "once upon", "n": ' + "9" * 5000 + "}", "holds a number of too many digits"),
    "many digits in arguments": (turns(call("9" * 5000)), "message 2 holds a number of too many digits"),
    "tool_calls 5": (turns({"role": "assistant", "content": "a", "tool_calls": 5}), "message 2 of `messages` has `tool_calls` that are no list"),
    "tool_calls true": (turns({"role": "assistant", "content": "a", "tool_calls": True}), "has `tool_calls` that are no list"),
    "content 5 beside calls": (turns(call("{}") | {"content": 5}), "message 2 of `messages` has no `content` text"),
    "from a list": ('{"conversations": [{"from": ["gpt"], "value": "a"}]}', "message 1 is from ['gpt']; known are"),
    "from an object": ('{"conversations": [{"from": {"a": 1}, "value": "a"}]}', "message 1 is from {'a': 1}; known are"),
    "an id that is a list": ('{"id": [1], "text": "once upon"}', "`id` is neither a text nor a number"),
    "too long": (turns({"role": "assistant", "content": "x" * 2000}), "holds 2,002 characters, more than 1,000, which no model reads at once"),
    "too long a text": (json.dumps({"text": "x" * 2000}), "holds 2,000 characters"),
    "raw NUL": ('{"text": "a\0b"}', "is not JSON: Invalid control character"),
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(conversations, "LONGEST", 1000)


@pytest.fixture
def file_of(tmp_path):
    def write(row):
        path = tmp_path / "[" / "x].jsonl"  # `[/x]` is markup to rich
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{GOOD}\n{row}\n")
        return path

    return write


def readers():
    tokenizer = byte_tokenizer()
    return (read_records, lambda path: load_examples([str(path)], tokenizer, frozenset({tokenizer.eos_token_id}), 10_000))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_by_its_line(file_of, kind):
    row, reason = BAD[kind]
    path = file_of(row)
    for read in readers():
        with pytest.raises(Pard2Error) as caught:
            read(path)
        said = str(caught.value)
        assert said.startswith(f"{path}:2") and reason in said and "\n" not in said, said


@pytest.mark.parametrize(
    "kind", ["half a character", "half a character in an id", "deep", "deep arguments", "many digits", "tool_calls 5", "from a list"]
)
def test_every_command_refuses_it(pard2, target_directory, file_of, tmp_path, kind):
    row, reason = BAD[kind]
    path = file_of(row)
    for command in (
        ("data", "preview", path, "-t", target_directory),
        ("data", "regenerate", "-i", path, "-t", target_directory, "-o", tmp_path / "out.jsonl"),
        ("generate", "--prompts", path, "-t", target_directory),
        ("bench", "-s", path, "-t", target_directory),
    ):
        result = pard2(*command)
        assert result.code == 2 and f"{path}:2" in result.err and reason in result.err and "Traceback" not in result.err, (command, result)
    assert not (tmp_path / "out.jsonl").exists()


def test_whole_characters_and_zeros_are_read(file_of):
    """What stands beside the bad ones."""
    for row, text in (('{"text": "a\\ud83d\\ude00"}', "a😀"), ('{"text": "a\\u0000b"}', "a\0b"), ('{"text": "\\\\ud83d"}', "\\ud83d")):
        assert read_records(file_of(row))[1]["text"] == text


@pytest.mark.parametrize("word", ["-p", "--stop", "--system"])
def test_an_argument_that_is_no_text_is_refused_before_anything_is_loaded(pard2, word):
    command = ("chat", "-t", "no/model") if word == "--system" else ("generate", "-t", "no/model", "-p", "x")
    assert pard2(*command, word, "a\udcffb").error == "the argument 'a\\udcffb' is not UTF-8 text"


@pytest.mark.parametrize(("text", "reason"), [(DEEP, "nested too deeply"), ("9" * 5000, "too many digits"), ('{"a": "\\ud83d"}', "half of a")])
def test_extra_fields_of_a_request(pard2, file_of, tmp_path, text, reason):
    options = ("-i", file_of(GOOD), "-t", "x", "-o", tmp_path / "out", "--endpoint", "http://localhost:1/v1", "--extra-body", text)
    said = pard2("data", "regenerate", *options).error
    assert said.startswith("--extra-body") and reason in said


@pytest.mark.parametrize("value", ["[" * 100_000, "2020-99-99", "9" * 5000])
def test_yaml_that_cannot_be_read(pard2, tmp_path, value):
    run = tmp_path / "run.yaml"
    run.write_text(f"target: {{name: x}}\ndraft: {value}\n")
    assert "run.yaml is not YAML" in pard2("train", run).error
    run.write_text("target: {name: x}\n")
    assert "the value is not YAML" in pard2("train", run, f"draft.layers={value}").error


def piped(path, content):
    """A named pipe that somebody writes to once."""
    os.mkfifo(path)
    threading.Thread(target=lambda: path.write_bytes(content), daemon=True).start()
    return path


def test_a_pipe_is_read_once_and_shown_whole(pard2, target_directory, tmp_path):
    """It was counted, and then found empty."""
    pipe = piped(tmp_path / "pipe", f"{GOOD}\n{GOOD}\n".encode())
    result = pard2("data", "preview", pipe, "-t", target_directory)
    assert result.code == 0 and "pipe:1: 4 of" in result.out and "2 examples of" in result.out, result


def test_a_result_is_not_read_from_a_pipe_or_a_device(pard2, draft_directory, target_directory, file_of, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/full"):
        for force in ((), ("--force",)):
            result = pard2("bench", "-s", file_of(GOOD), "-t", target_directory, "-d", draft_directory, "--json", place, *force)
            assert f"cannot write {place}: it is not a regular file" in result.error
