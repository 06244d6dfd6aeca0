"""Where prompts come from: words, pipes and files, and what is told where there is none."""

import io
import json
import os
import subprocess
import sys

import pytest

from pard2.cli import question
from pard2.engine.engine import Engine


@pytest.fixture
def asked(monkeypatch) -> list:
    """The prompts that engines are asked to answer; messages as pairs of role and content."""
    found, real = [], Engine.completions

    def completions(self, prompts, params=None, raw=False):
        for prompt in prompts:
            messages = prompt["messages"] if isinstance(prompt, dict) else prompt
            found.append(messages if isinstance(messages, str) else [(one["role"], one["content"]) for one in messages])
        return real(self, prompts, params, raw)

    monkeypatch.setattr(Engine, "completions", completions)
    return found


@pytest.fixture
def run(pard2, target_directory, monkeypatch):
    def run(*options: object, piped: bytes = b"", terminal: bool = False):
        stream = io.TextIOWrapper(io.BytesIO(piped), encoding="ascii")
        monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stdin", stream)
        return pard2("generate", "-t", target_directory, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", 3, *options)

    return run


def test_a_pipe_is_one_prompt_without_the_line_break_at_its_end(run, asked):
    assert run(piped="\ufeffWhy is\nthe sky blüe?\r\n".encode()).code == 0
    assert run("-p", "-", "-p", "too", piped=b"from the pipe\n\n").code == 0
    assert run("-p", "alone", piped=b"not read").code == 0
    assert asked == ["Why is\nthe sky blüe?", "from the pipe\n", "too", "alone"]


def test_a_text_file_is_one_prompt(run, asked, tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("line one\nline two\n")
    assert run("--prompt-file", file, piped=b"not read").code == 0
    assert run("--prompt-file", "-", "--raw", piped=b"raw").code == 0
    assert asked == ["line one\nline two", "raw"]


def test_what_the_model_is_told_first(run, asked, tmp_path):
    file = tmp_path / "f.jsonl"
    user, other = {"role": "user", "content": "q"}, {"role": "system", "content": "its own"}
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in ([user], [other, user])))
    assert run("-p", "q", "--system", "s").code == 0
    assert run("--prompts", file, "--system", "s").code == 0
    assert asked == [[("system", "s"), ("user", "q")]] * 2 + [[("system", "its own"), ("user", "q")]]
    assert "--system is for it" in run("-p", "q", "--system", "s", "--raw").error


@pytest.mark.parametrize("piped", [b"", b"\n", b" \n\t\n"])
@pytest.mark.parametrize("options", [(), ("-p", "-"), ("--prompt-file", "-")])
def test_an_empty_pipe(run, options, piped):
    assert "standard input is empty" in run(*options, piped=piped).error


def test_a_terminal_without_a_prompt(run):
    error = run(terminal=True, piped=b"not read").error
    assert all(way in error for way in ("there is no prompt", "-p", "pipe", "--prompt-file", "--prompts"))


@pytest.mark.parametrize("binary", [b"\x7fELF\x00\x01", b"\xff\xfeW\x00h\x00y\x00", b"caf\xe9"])
def test_a_prompt_that_is_no_text(run, tmp_path, binary):
    file = tmp_path / "f.bin"
    file.write_bytes(binary)
    assert "f.bin holds binary data, or text that is not UTF-8" in run("--prompt-file", file).error
    assert "standard input holds binary data" in run(piped=binary).error


def test_prompt_files_that_cannot_be_read(run, tmp_path, monkeypatch):
    assert "cannot read" in run("--prompt-file", tmp_path).error
    assert "No such file" in run("--prompt-file", tmp_path / "none").error
    (tmp_path / "empty").touch()
    assert "empty is empty" in run("--prompt-file", tmp_path / "empty").error
    assert "-p and --prompt-file are both given" in run("--prompt-file", tmp_path / "empty", "-p", "x").error
    monkeypatch.setattr(question, "LONGEST_TEXT", 2**26)
    assert "holds more than" in run(piped=b"x" * (2**25 + 1)).error


def test_text_in_place_of_conversations_names_the_other_option(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Why is the sky blue?\nAnd the sea?\n")
    error = run("--prompts", file).error
    assert "prompts.txt:1 is not JSON" in error and '{"messages": [' in error and "--prompt-file" in error


@pytest.mark.slow
def test_conversations_of_a_pipe(target_directory):
    """In a process of its own: sources are read from the real standard input."""
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ("hello", "bye")]
    command = [sys.executable, "-m", "pard2", "generate", "-t", target_directory, "--prompts", "-", "--max-new-tokens", "2", "--json"]
    piped = "".join(json.dumps(row) + "\n" for row in rows).encode()
    result = subprocess.run(command, input=piped, capture_output=True, env=os.environ, timeout=100)
    assert result.returncode == 0 and [json.loads(line)["prompt"] for line in result.stdout.splitlines()] == [0, 1]


def test_the_embedded_target_is_the_default(pard2, monkeypatch, tmp_path):
    """Where a command makes data or a draft, the target must be named."""
    loaded = []

    def build(target, draft=None, *_args, **_options):
        loaded.append((target, draft))
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "from_pretrained", build)
    monkeypatch.setattr("pard2.checkpoints.loading.load_target", build)
    rows = tmp_path / "f.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    for command in (("generate", "-p", "x"), ("chat",), ("verify",), ("bench", "-s", rows)):
        assert pard2(*command).code == 130
    assert [target for target, _ in loaded] == ["smollm2"] * 4
    assert not any(draft for _, draft in loaded[:3]), "the engine takes the embedded draft by itself"
    for command in (("data", "synthesize", "-n", 1), ("data", "regenerate", "-i", rows), ("draft", "init", "--layers", 1)):
        result = pard2(*command, "-o", tmp_path / "out")
        assert result.code == 2 and "--target" in result.err
