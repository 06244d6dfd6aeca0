"""Outputs of every command: replaced at the end, never an input, never something else,
never what another run writes."""

import errno
import fcntl
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pard2 import files
from pard2.checkpoints import loading
from pard2.data.records import RecordWriter, read_records
from pard2.engine import pair
from pard2.engine.engine import Engine
from pard2.errors import Pard2Error
from pard2.files import CHECKPOINT, claim, new_directory, new_file, whole_directory, write_whole

ANSWERED = ["--max-new-tokens", 4, "--dtype", "float32", "--device", "cpu"]


def conversation(name: str) -> dict:
    return {"id": name, "messages": [{"role": "user", "content": f"hello {name}"}, {"role": "assistant", "content": "yes"}]}


def write(path: Path, *ids: str) -> Path:
    path.write_text("".join(json.dumps(conversation(name)) + "\n" for name in ids))
    return path


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file below it, hidden ones too, and what it holds."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path, monkeypatch, target_directory, draft_directory, pard2) -> Path:
    """A directory with something of every kind in it, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", "a", "b")
    write(tmp_path / "twice.jsonl", "a", "a")
    write(tmp_path / "mute.jsonl", "a").write_text('{"id": "a", "messages": [{"role": "system", "content": "x"}]}\n')
    write(tmp_path / "old.jsonl", "x", "y", "z")
    (tmp_path / "long.jsonl").write_text(json.dumps({"id": "l", "messages": [{"role": "user", "content": "x" * 500}]}) + "\n")
    shutil.copytree(target_directory, tmp_path / "target")
    shutil.copytree(target_directory, tmp_path / "mute")  # a target that cannot chat
    (tmp_path / "mute" / "chat_template.jinja").unlink()
    shutil.copytree(draft_directory, tmp_path / "draft")
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "manifest.json").write_text('{"format": "pard2-tokens"}')
    result = {"meta": {"versions": {}, "hardware": {}}, "results": [], "plan": {}, "chunks": []}
    (tmp_path / "old.json").write_text(json.dumps(result))
    run = {
        "target": {"name": "target"},
        "draft": {"layers": 1, "target_layers": [-1]},
        "data": {"train": ["in.jsonl"], "max_length": 100},
        "features": {"cache": "cache"},
        "loop": {"output": "run", "steps": 1, "device": "cpu"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return tmp_path


REGENERATE = ["data", "regenerate", "-i", "in.jsonl", "-o", "old.jsonl", "--force", *ANSWERED]
ELSEWHERE = ["data", "regenerate", "-t", "x/y", "-i", "in.jsonl", "-o", "old.jsonl", "--force"]
SYNTHESIZE = ["data", "synthesize", "-n", 2, "-o", "old.jsonl", "--force", *ANSWERED]
INIT = ["draft", "init", "--layers", 1, "-o", "draft", "--force"]
PREPARE = ["data", "prepare", "-o", "prepared", "--force"]
BENCH = ["bench", "--json", "old.json", "--force", *ANSWERED]

FAILING_STARTS = [
    [*REGENERATE, "-t", "nope"],
    [*REGENERATE, "-t", "target", "-d", "nope"],
    [*REGENERATE, "-t", "target", "--dtype", "int3"],
    [*REGENERATE, "-t", "target", "--device", "abacus"],
    [*REGENERATE, "-t", "target", "--device", "meta"],
    [*REGENERATE, "-t", "target", "-i", "twice.jsonl"],
    [*REGENERATE, "-t", "target", "-i", "mute.jsonl"],
    [*REGENERATE, "-t", "target", "-i", "long.jsonl"],
    [*REGENERATE, "-t", "target", "-i", "none.jsonl"],
    [*REGENERATE, "-t", "mute"],
    [*ELSEWHERE, "--endpoint", "http://127.0.0.1:9/v1", "--retries", 0],
    [*ELSEWHERE, "--endpoint", "nowhere"],
    [*ELSEWHERE, "--endpoint", "http://127.0.0.1:9/v1", "--extra-body", "5"],
    [*ELSEWHERE, "--endpoint", "http://127.0.0.1:9/v1", "--api-key-env", "NO_SUCH_VARIABLE"],
    [*ELSEWHERE, "--endpoint", "http://127.0.0.1:9/v1", "--timeout", "nan"],
    [*SYNTHESIZE, "-t", "nope"],
    [*SYNTHESIZE, "-t", "mute"],
    [*INIT, "-t", "nope"],
    [*INIT, "-t", "target", "--mask-token", 10**6],
    [*PREPARE, "in.jsonl", "-t", "nope"],
    [*PREPARE, "mute.jsonl", "-t", "target"],
    [*BENCH, "-t", "nope", "-s", "in.jsonl"],
    [*BENCH, "-t", "target", "-s", "none.jsonl"],
]


@pytest.mark.parametrize("command", FAILING_STARTS, ids=lambda command: " ".join(map(str, command[:2] + command[-3:])))
def test_a_failing_start_with_force_keeps_the_old_output(pard2, place, command):
    before = snapshot(place)
    assert pard2(*command).code == 2
    after = snapshot(place)
    after.pop("old.jsonl.failures.jsonl", None)  # where there were prompts and none could be answered
    assert after == before


INTERRUPTED = [
    [*REGENERATE, "-t", "target"],
    [*SYNTHESIZE, "-t", "target"],
    [*INIT, "-t", "target"],
    [*BENCH, "-t", "target", "-s", "in.jsonl"],
]


@pytest.mark.parametrize("command", INTERRUPTED, ids=lambda command: command[1])
def test_ctrl_c_while_loading_keeps_the_old_output_and_says_so_in_one_line(pard2, place, monkeypatch, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "from_pretrained", interrupted)
    for module in (loading, pair):  # which names it on its own
        monkeypatch.setattr(module, "load_target", interrupted)
    before = snapshot(place)
    result = pard2(*command)
    assert result.code == 130 and result.err.splitlines()[-1] == "error: interrupted" and "records are in" not in result.err
    assert snapshot(place) == before


def test_force_replaces_when_the_first_record_stands_and_that_can_be_gone_on_with(pard2, place, monkeypatch):
    """A kill leaves the old file or the new one, and the new one is what the same command
    without --force continues."""
    write_one = RecordWriter.write

    def second_interrupts(self, records):
        if self.done:
            raise KeyboardInterrupt
        assert len(read_records("old.jsonl")) == 3
        write_one(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", second_interrupts)
        result = pard2(*REGENERATE, "-t", "target", "--batch-size", 1)
    assert result.code == 130 and "1 records are in old.jsonl; the same command without --force goes on from there" in result.err
    assert len(read_records("old.jsonl")) == 1
    resumed = pard2(*(word for word in REGENERATE if word != "--force"), "-t", "target")
    assert resumed.code == 0 and "1 already there" in resumed.err and len(read_records("old.jsonl")) == 2
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


OUTPUT_IS_INPUT = [
    (["data", "regenerate", "-t", "target", "-i", "in.jsonl", "-o"], "in.jsonl"),
    (["data", "regenerate", "-t", "target", "-i", "other.jsonl.failures.jsonl", "-o"], "other.jsonl"),
    (["bench", "-t", "target", "-s", "in.jsonl", "--json"], "in.jsonl"),
    (["draft", "init", "-t", "target", "--layers", 1, "-o"], "target"),
    (["data", "prepare", "prepared/rows.jsonl", "-t", "target", "-o"], "prepared"),
    (["data", "prepare", "in.jsonl", "-t", "target", "-o"], "target"),
]


@pytest.mark.parametrize(
    ("command", "output"), OUTPUT_IS_INPUT, ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else value
)
@pytest.mark.parametrize("way", ["as it is", "./", "absolute", "link", "hard link"])
def test_an_output_that_is_an_input_is_refused_whatever_it_is_called(pard2, place, command, output, way):
    write(place / "prepared" / "rows.jsonl", "a")
    write(place / "other.jsonl.failures.jsonl", "a")
    path = place / output
    if way == "link":
        (place / f"{output}-link").symlink_to(path)
        path = place / f"{output}-link"
    elif way == "hard link":
        if not path.is_file():
            pytest.skip("directories have none")
        os.link(path, place / "hard")
        path = place / "hard"
    if output == "other.jsonl" and "link" in way:
        pytest.skip("its list of failures lies beside the link")
    before = snapshot(place)
    shown = {"as it is": output, "./": f"./{output}/." if (place / output).is_dir() else f"./{output}"}.get(way, path)
    message = pard2(*command, shown, "--force").error
    assert "it is the input itself" in message or "lies in it" in message
    assert snapshot(place) == before


SOMETHING_ELSE = [
    ([*REGENERATE, "-t", "target", "-o", "diary"], "holds something other than records"),
    ([*SYNTHESIZE, "-t", "target", "-o", "diary"], "holds something other than records"),
    ([*BENCH, "-t", "target", "-s", "in.jsonl", "--json", "diary"], "no result of `pard2 bench`"),
    ([*BENCH, "-t", "target", "-s", "in.jsonl", "--json", "old.jsonl"], "no result of `pard2 bench`"),
    ([*BENCH, "-t", "target", "-s", "in.jsonl", "--json", "pipe"], "not a regular file"),
    ([*REGENERATE, "-t", "target", "-o", "pipe"], "not a regular file"),
    ([*INIT, "-t", "target", "-o", "mute"], "a checkpoint that this command does not make, so --force will not"),
    ([*INIT, "-t", "target", "-o", "mine"], "holds 'thesis.txt' beside its checkpoint, so --force will not"),
    ([*INIT, "-t", "target", "-o", "prepared"], "holds no checkpoint, so --force will not"),
    ([*PREPARE, "in.jsonl", "-t", "target", "-o", "draft"], "holds no prepared data, so --force will not"),
    ([*PREPARE, "in.jsonl", "-t", "target", "-o", "data"], "holds 'notes' beside its prepared data"),
    ([*PREPARE, "in.jsonl", "-t", "target", "-o", "diary"], "a file of that name is in the way"),
]


@pytest.mark.parametrize(("command", "said"), SOMETHING_ELSE, ids=lambda value: f"{value[1]} {value[-1]}" if isinstance(value, list) else "")
def test_force_replaces_nothing_of_another_kind(pard2, place, command, said):
    (place / "diary").write_text("my diary\n")
    os.mkfifo(place / "pipe")
    shutil.copytree(place / "draft", place / "mine")
    (place / "mine" / "thesis.txt").write_text("years of work")
    shutil.copytree(place / "prepared", place / "data")
    (place / "data" / "notes").write_text("mine")
    before = snapshot(place)
    assert said in pard2(*command).error
    assert snapshot(place) == before


HELD = [
    ([*REGENERATE, "-t", "target"], lambda: RecordWriter("old.jsonl")),
    ([*SYNTHESIZE, "-t", "target"], lambda: RecordWriter("old.jsonl")),
    ([*BENCH, "-t", "target", "-s", "in.jsonl"], lambda: new_file("old.json")),
    ([*INIT, "-t", "target"], lambda: new_directory(Path("draft"), True, CHECKPOINT)),
    ([*PREPARE, "in.jsonl", "-t", "target"], lambda: new_directory(Path("prepared"), True, files.PREPARED)),
    (["data", "cache", "run.yaml"], lambda: claim(Path("cache"))),
    (["train", "run.yaml"], lambda: claim(Path("run"))),
]


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(("command", "hold"), HELD, ids=lambda value: value[1] if isinstance(value, list) else "")
def test_two_at_once_are_one_and_a_refusal(pard2, place, command, hold, force):
    """With --force as without it; and under another name of the same output."""
    command = command if force else [word for word in command if word != "--force"]
    (place / "alias").symlink_to(place)
    with hold():
        before = snapshot(place)
        assert "another run is writing to" in pard2(*command).error
        if "-o" in command:
            place_of = command.index("-o") + 1
            assert "another run" in pard2(*command[:place_of], f"alias/{command[place_of]}", *command[place_of + 1 :]).error
        assert snapshot(place) == before
    assert not [path for path in place.rglob(".*") if path.name.endswith(("lock", "partial"))]


def test_a_lock_that_its_holder_took_away_in_between_is_taken_anew(tmp_path, monkeypatch):
    """Else two would hold locks: one of a file without a name."""
    real, calls = fcntl.flock, []

    def flock(file, how):
        real(file, how)
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / ".x.lock").unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with new_file(tmp_path / "x"), pytest.raises(Pard2Error, match="another run"), new_file(tmp_path / "x"):
        pass
    assert len(calls) == 2 and not list(tmp_path.iterdir())


def test_what_killed_runs_left_is_cleaned_up(tmp_path):
    (tmp_path / ".d.lock").touch()
    (tmp_path / ".d-abc.partial").mkdir()
    (tmp_path / ".d-mine").mkdir()
    with new_directory(tmp_path / "d", False, CHECKPOINT):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".d-mine"]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files may grow to so many bytes and no further: a disk that is full in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def append_record(path: Path) -> None:
    with RecordWriter(path) as writer:
        writer.write([conversation("new")])


def replace_records(path: Path) -> None:
    with RecordWriter(path, replace=True) as writer:
        writer.write([conversation("new" * 100)])


def with_tensors(save):
    def write_directory(path: Path) -> None:
        with whole_directory(path) as beside:
            save({"x": torch.zeros(10_000)}, beside / "x")

    return write_directory


@pytest.mark.parametrize(
    ("work", "room"),
    [
        (append_record, 30),
        (replace_records, -50),
        (lambda path: write_whole(path, bytes(10_000)), 0),
        (with_tensors(save_file), 0),
        (with_tensors(torch.save), 0),
    ],
    ids=["append", "replace", "file", "safetensors", "torch"],
)
def test_a_disk_that_is_full_in_the_middle_of_a_write(tmp_path, work, room):
    """The old output is whole, nothing lies beside it, and the line says what was refused."""
    path = write(tmp_path / "out", "a", "b") if room or work.__name__ == "<lambda>" else tmp_path / "out"
    if not path.exists():
        path.mkdir()
        (path / "old").write_text("old")
    before = snapshot(tmp_path)
    with full_disk(sum(map(len, before.values())) + room), pytest.raises(Pard2Error, match=r"^cannot write .*(it holds|held before) is kept"):
        work(path)
    assert snapshot(tmp_path) == before


def test_torch_does_not_say_that_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(Pard2Error, match=os.strerror(errno.ENOSPC)), whole_directory(tmp_path / "d"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


def test_a_kill_while_a_file_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert snapshot(tmp_path) == {"f": b"old"}


def test_a_file_behind_a_link_is_replaced_there(tmp_path):
    (tmp_path / "disk").write_bytes(b"old")
    (tmp_path / "f").symlink_to("disk")
    write_whole(tmp_path / "f", b"new")
    assert (tmp_path / "f").is_symlink() and (tmp_path / "disk").read_bytes() == b"new"


LONG, NEARLY, LOOP = "n" * 300, "n" * 250, "loop"  # of 250 characters there are files, but none that are written beside them


@pytest.mark.parametrize(
    "command",
    [
        ["data", "preview", "{}", "-t", "target"],
        ["data", "preview", "in.jsonl", "-t", "{}"],
        ["data", "prepare", "{}", "-t", "target", "-o", "new"],
        ["data", "prepare", "in.jsonl", "-t", "target", "-o", "{}"],
        ["data", "regenerate", "-t", "target", "-i", "{}", "-o", "new"],
        ["data", "regenerate", "-t", "nope", "-i", "in.jsonl", "-o", "{}"],
        ["data", "synthesize", "-t", "nope", "-n", 2, "-o", "{}"],
        ["data", "cache", "run.yaml", "features.cache={}/x"],
        ["draft", "init", "-t", "nope", "--layers", 1, "-o", "{}"],
        ["draft", "init", "-t", "{}", "--layers", 1, "-o", "new"],
        ["draft", "info", "{}"],
        ["generate", "-t", "{}", "-p", "x"],
        ["generate", "-t", "target", "-d", "{}", "-p", "x"],
        ["generate", "-t", "target", "--prompts", "{}"],
        ["bench", "-t", "target", "-s", "{}"],
        ["bench", "-t", "nope", "-s", "in.jsonl", "--json", "{}"],
        ["train", "{}"],
        ["train", "run.yaml", "loop.output={}/x"],
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_names_that_no_file_can_have_are_one_line(pard2, place, command):
    (place / "loop").symlink_to("loop")
    before = snapshot(place)
    written = command[-2] in ("-o", "--json") and command[-1] == "{}"
    for name in (LONG, LOOP, NEARLY) if written else (LONG, LOOP):
        assert pard2(*(str(word).replace("{}", name) for word in command)).error
    assert snapshot(place) == before


NUMBERS = [
    (["bench", "-t", "target", "-s", "in.jsonl", "--repeats", 999_999_999], "--repeats"),
    (["bench", "-t", "target", "-s", ""], "-s '' is not a list of names"),
    (["bench", "-t", "target", "-s", ","], "-s ',' is not a list of names"),
    (["bench", "-t", "target", "-s", "in.jsonl", "-m", ""], "-m '' is not a list of names"),
    (["bench", "-t", "target", "-s", "in.jsonl", "--batch-size", "1,"], "--batch-size '1,' is not a list of numbers"),
    (["data", "preview", "in.jsonl", "-t", "target", "-n", 10**25], "--count"),
    (["data", "synthesize", "-t", "target", "-o", "new", "-n", 10**25], "--count"),
    (["draft", "init", "-t", "target", "-o", "new", "--layers", 1, "--draft-tokens", 10**9], "--draft-tokens"),
    (["verify", "-t", "target", "--samples", 10**12], "--samples"),
    (["verify", "-t", "target", "--sample-tokens", 10**12], "--sample-tokens"),
    (["generate", "-t", "target", "-p", "x", "--cache-tokens", 10**25], "--cache-tokens"),
    (["generate", "-t", "target", "-p", "x", "--device", "meta"], "--device 'meta' is not a device"),
]


@pytest.mark.parametrize(
    ("command", "said"), NUMBERS, ids=lambda value: " ".join(map(str, value[:1] + value[-2:])) if isinstance(value, list) else ""
)
def test_numbers_and_words_that_can_only_be_slips(pard2, place, command, said):
    result = pard2(*command)
    assert result.code == 2 and said in result.err and "Traceback" not in result.err


def test_no_home(pard2, monkeypatch, tmp_path):
    """A user without an entry in the system's list, as in many containers."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for variable in ("PARD2_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(Path, "home", no_home)
    assert "no home directory" in pard2("generate", "-t", tmp_path / "m.gguf", "-p", "x").error
