"""The process round the commands: streams that are full, closed or broken, Ctrl-C at any moment,
what the machine refuses."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from pard2.checkpoints import read
from pard2.cli import interrupts

COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "help of a command": ["bench", "--help"],
    "generate": ["generate", "-t", "TARGET", "-p", "hi", "--max-new-tokens", 2],
    "several": ["generate", "-t", "TARGET", "-p", "hi", "-p", "ho", "--max-new-tokens", 2, "--json"],
    "chat": ["chat", "-t", "TARGET", "--max-new-tokens", 2],
    "info": ["draft", "info", "DRAFT"],
    "preview": ["data", "preview", "in.jsonl", "-t", "TARGET"],
    "prepare": ["data", "prepare", "in.jsonl", "-t", "TARGET", "-o", "made"],
    "regenerate": ["data", "regenerate", "-t", "TARGET", "-i", "in.jsonl", "-o", "out.jsonl", "--max-new-tokens", 2],
    "dry run": ["train", "run.yaml", "--dry-run"],
    "bench": ["bench", "-t", "TARGET", "-s", "in.jsonl", "--max-new-tokens", 2],
    "bad input": ["generate", "-t", "nope", "-p", "x"],
}
QUIET = ("regenerate", "prepare", "bad input")  # which print nothing on standard output
SILENT = ("help", "version", "help of a command", "info")  # which print nothing on standard error


@pytest.fixture
def run(pard2, target_directory, draft_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    target = {"name": str(target_directory)}
    config = {"target": target, "draft": {"layers": 1, "target_layers": [-1]}, "data": {"train": ["in.jsonl"]}, "loop": {"output": "run", "steps": 1}}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    names = {"TARGET": target_directory, "DRAFT": draft_directory}
    return lambda command: pard2(*(names.get(word, word) for word in COMMANDS[command]))


@pytest.fixture
def full():
    with open("/dev/full", "w") as stream:
        yield stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what it holds cannot be written when it is closed


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in QUIET])
def test_a_full_standard_output_is_one_line(run, monkeypatch, full, command):
    monkeypatch.setattr(sys, "stdout", full)
    result = run(command)
    assert result.code == 2 and "Traceback" not in result.err
    assert [line for line in result.err.splitlines() if line.startswith("error: ")] == [result.err.splitlines()[-1]]
    assert "No space left on device" in result.err.splitlines()[-1]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in SILENT])
def test_a_full_standard_error_ends_in_silence(run, monkeypatch, full, command):
    monkeypatch.setattr(sys, "stderr", full)
    result = run(command)
    assert result.code == 2 and "Traceback" not in result.out


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_stream_leads_nowhere(run, monkeypatch, command, stream):
    monkeypatch.setattr(sys, stream, None)
    assert run(command).code == (2 if command == "bad input" else 0)


def test_a_broken_pipe_is_silent(run, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # typer replaces both
    result = run("version")
    assert result.code == 1 and result.err == ""
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OSError(5, "Input/output error", "disk/x"), 2, "Input/output error: disk/x"),
        (OSError("the hub is away\nand more"), 2, "the hub is away"),
        (MemoryError(), 2, "the memory is full"),
        (RecursionError("maximum recursion depth exceeded"), 2, "the input is nested too deeply"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_machine_refuses_is_one_line(run, monkeypatch, error, code, told):
    def fails(_):
        raise error

    monkeypatch.setattr(read, "checkpoint_directory", fails)
    result = run("info")
    assert (result.code, result.err) == (code, f"error: {told}\n")


@pytest.mark.parametrize("error", [ValueError("bug"), ImportError("no module"), RuntimeError("bug")])
def test_a_bug_keeps_its_traceback(run, monkeypatch, error):
    def fails(_):
        raise error

    monkeypatch.setattr(read, "checkpoint_directory", fails)
    with pytest.raises(type(error)):
        run("info")


def test_an_import_that_fails_of_ctrl_c_is_an_interrupt(run, monkeypatch):
    def fails(_):
        with pytest.raises(KeyboardInterrupt):  # which somebody swallows
            signal.raise_signal(signal.SIGINT)
        raise ModuleNotFoundError("Could not import module 'PreTrainedModel'")

    monkeypatch.setattr(interrupts, "seen", False)
    monkeypatch.setattr(read, "checkpoint_directory", fails)
    assert run("info").code == 130


def test_ctrl_c_within_an_import_ends_at_once(tmp_path, monkeypatch, capfd):
    """Raised there, it may be swallowed, and the command goes on with half a module."""

    class Left(BaseException):
        pass

    def leave(code):
        raise Left(code)

    (tmp_path / "interrupted_module.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "_exit", leave)
    before = interrupts.install(interrupts.interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Left, match="130"):
            import interrupted_module  # noqa: F401
    finally:
        interrupts.install(before)
    assert capfd.readouterr().err == "error: interrupted\n"


def test_the_handler_of_the_caller_comes_back_and_an_ignored_ctrl_c_stays_ignored(run):
    before = signal.getsignal(signal.SIGINT)
    run("version")
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert interrupts.install(interrupts.interrupt) is signal.SIG_IGN and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["pard2.cli.interrupts", "typer", "torch._C", "transformers.utils.import_utils"])
def test_a_real_ctrl_c_from_the_start_of_the_process_on(target_directory, tmp_path, moment):
    """Sent once the interpreter says that it has imported the module.

    It says so of the first but one when `main` is still to begin.
    """
    command = [sys.executable, "-X", "importtime", "-m", "pard2", "generate", "-t", str(target_directory), "-p", "x", "--max-new-tokens", "100"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it, and so would this one
        text=True,
    )
    seen = any(re.search(rf"\| +{re.escape(moment)}$", line) for line in process.stderr) or process.poll()
    if moment == "pard2.cli.interrupts":  # and main has begun
        next(process.stderr), next(process.stderr), next(process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert seen is True and process.returncode == 130, err[-2000:]
    assert out == "" and [line for line in err.splitlines() if not line.startswith("import time:")] == ["error: interrupted"]


@pytest.mark.slow
def test_real_streams(tmp_path):
    """Descriptors, not objects: what is opened next would get the number of a closed one."""
    # Buffered, as users have it: what a stream still holds must not be written when the interpreter ends.
    command = f"cd {tmp_path} && unset PYTHONUNBUFFERED && PYTHONPATH={':'.join(sys.path)} {sys.executable} -m pard2"
    for line, code in [
        ("--version >/dev/full", 2),
        ("--version >&-", 0),
        ("--version >/dev/full 2>/dev/full", 2),
        ("train nope.yaml 2>&-", 2),
        ("train nope.yaml 2>/dev/full", 2),
        ("--help <&- >&- 2>&-", 0),
    ]:
        result = subprocess.run(f"{command} {line}", shell=True, capture_output=True, text=True)
        assert result.returncode == code and "Traceback" not in result.stderr + result.stdout, (line, result)
        assert "Exception ignored" not in result.stderr
