"""`data synthesize`, `regenerate` and `preview`: checked before they start, resumable, never over somebody else's file."""

import filecmp
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pard2.data.records import RecordWriter, read_records
from pard2.engine.engine import Engine
from pard2.engine.request import Completion
from pard2.engine.statistics import Stats


def write(path, count, text="hello"):
    records = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"{text} {i}"}]} for i in range(count)]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "prompts.jsonl", 5)


@pytest.fixture
def regenerate(pard2, target_directory, prompts):
    return lambda *options: pard2("data", "regenerate", "-t", target_directory, "-i", prompts, "--max-new-tokens", 4, "--dtype", "float32", *options)


def test_regenerate_answers_all_and_says_its_plan(regenerate, tmp_path):
    result = regenerate("-o", tmp_path / "out.jsonl", "--batch-size", 2)
    assert result.code == 0 and result.out == ""
    assert "5 prompts to answer with up to 4 tokens each" in result.err and "0 already there" in result.err
    assert sorted(r["id"] for r in read_records(tmp_path / "out.jsonl")) == ["p0", "p1", "p2", "p3", "p4"]
    assert "5 already there" in regenerate("-o", tmp_path / "out.jsonl").err


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(regenerate, tmp_path, monkeypatch):
    write_one = RecordWriter.write

    def third_write_interrupts(self, records):
        if len(self.done) == 2:
            raise KeyboardInterrupt
        write_one(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", third_write_interrupts)
        result = regenerate("-o", tmp_path / "out.jsonl", "--batch-size", 2)
    assert result.code == 130 and "Traceback" not in result.err
    assert "2 records are in" in result.err and "the same command goes on from there" in result.err
    assert regenerate("-o", tmp_path / "out.jsonl", "--batch-size", 2).code == 0
    assert len(read_records(tmp_path / "out.jsonl")) == 5


def test_a_draft_changes_no_answer(regenerate, tmp_path, draft_directory):
    sampled = ("--temperature", 0.8, "--seed", 3)
    assert regenerate("-o", tmp_path / "plain", *sampled).code == 0
    assert regenerate("-o", tmp_path / "drafted", *sampled, "-d", draft_directory, "--batch-size", 2).code == 0
    assert filecmp.cmp(tmp_path / "plain", tmp_path / "drafted", shallow=False)


def test_a_file_begun_with_other_settings_is_refused_before_the_target_is_loaded(regenerate, pard2, prompts, tmp_path):
    output = tmp_path / "out.jsonl"
    regenerate("-o", output, "--temperature", 0.5)
    before = output.read_bytes()
    assert "--temperature 0.5, and this is --temperature 0.0; give the same --temperature, name another" in regenerate("-o", output).error
    assert "-t" in pard2("data", "regenerate", "-t", "no/such-model", "-i", prompts, "-o", output).error
    assert output.read_bytes() == before
    assert regenerate("-o", output, "--force").code == 0
    assert regenerate("-o", output, "--seed", 5).code == 0  # which greedy answers ignore


@pytest.mark.parametrize(("option", "value"), [("--top-p", 0), ("--temperature", 1e9)])
def test_settings_out_of_range_are_found_before_the_target_is_loaded(pard2, prompts, tmp_path, option, value):
    for command in (("regenerate", "-i", prompts), ("synthesize", "-n", 2)):
        assert option in pard2("data", *command, "-t", "no/such-model", "-o", tmp_path / "out", option, value).error


def test_a_torn_last_line_is_done_again(regenerate, tmp_path):
    output = tmp_path / "out.jsonl"
    regenerate("-o", output)
    whole = output.read_bytes()
    output.write_bytes(whole[:-30])
    assert "4 already there" in regenerate("-o", output).err
    assert len(read_records(output)) == 5


def test_somebody_elses_file_is_refused_and_force_replaces_it(regenerate, prompts, tmp_path):
    other = write(tmp_path / "other.jsonl", 7)
    before = other.read_bytes()
    assert "holds records that are not in" in regenerate("-o", other).error
    assert other.read_bytes() == before
    assert regenerate("-o", other, "--force").code == 0
    assert len(read_records(other)) == 5
    assert "is the input itself" in regenerate("-o", prompts).error
    assert "is the input itself" in regenerate("-o", prompts, "--force").error
    assert len(read_records(prompts)) == 5


def test_bad_files_are_found_before_the_target_is_loaded(pard2, prompts, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"messages": 1}\n')

    def run(source, output):
        return pard2("data", "regenerate", "-t", "no/such-model", "-i", source, "-o", output)

    assert "cannot write" in run(prompts, tmp_path / "file" / "out").error
    assert "bad.jsonl:1 has no `messages`" in run(tmp_path / "bad.jsonl", tmp_path / "out").error
    assert "cannot read" in run(tmp_path / "none", tmp_path / "out").error
    assert "no model" in run(prompts, tmp_path / "out").error
    assert not (tmp_path / "out").exists()


def test_none_answered_is_an_error_and_some_are_not(regenerate, tmp_path, prompts):
    write(prompts, 2, "x" * 300)
    assert "none of the 2 prompts" in regenerate("-o", tmp_path / "out").error
    assert not (tmp_path / "out").exists()
    prompts.write_text(prompts.read_text() + '{"id": "short", "messages": [{"role": "user", "content": "x"}]}\n')
    result = regenerate("-o", tmp_path / "out")
    assert result.code == 0 and "leaves no room" in result.err
    assert f"1 of 3 answered, 2 could not be, listed in {tmp_path / 'out'}.failures.jsonl" in result.err


def test_synthesize_checks_its_output_first(pard2, prompts, tmp_path):
    def run(*options):
        return pard2("data", "synthesize", "-t", "no/such-model", "-n", 3, *options)

    assert "holds records that synthesize did not write" in run("-o", prompts).error
    assert "cannot write" in run("-o", tmp_path).error
    assert "--temperature must be above 0" in run("-o", tmp_path / "out", "--temperature", 0).error
    assert run("-o", tmp_path / "out", "-n", 0).code == 2
    assert run("-o", tmp_path / "out", "--seed", -1).code == 2


def test_synthesize_writes_what_is_left(pard2, target_directory, tmp_path, monkeypatch):
    said = iter("abcdefg")
    monkeypatch.setattr(Engine, "generate", lambda *_: iter([Completion([1], f"Who is Mister {next(said)}?", "stop", 1, Stats(), "ar")]))
    output = tmp_path / "out.jsonl"
    output.write_text('{"id": "synthetic-0", "messages": [{"role": "user", "content": "Who are you then?"}]}\n')
    result = pard2("data", "synthesize", "-t", target_directory, "-n", 3, "-o", output)
    assert result.code == 0, result
    assert "2 prompts of up to 128 tokens to write" in result.err and "1 already there" in result.err
    assert [r["id"] for r in read_records(output)] == ["synthetic-0", "synthetic-1", "synthetic-2"]


def test_preview_marks_exactly_the_answer(pard2, target_directory, tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "héé?"}, {"role": "assistant", "content": "yé[s]"}]}) + "\n")
    result = pard2("data", "preview", file, "-t", target_directory)
    assert result.code == 0
    assert "<|start|>user\nhéé?<|end|>\n<|start|>assistant\n⟦yé[s]<|end|>⟧\n" in result.out
    assert "a: 7 of" in result.out


def test_preview_of_an_empty_loss_mask(pard2, target_directory, prompts):
    assert "record p0: no token to predict" in pard2("data", "preview", prompts, "-t", target_directory).error.replace("\n", "")


@pytest.mark.slow
def test_a_real_sigint_in_the_middle(target_directory, tmp_path):
    """The whole way: signal, handler, exit code, file. The other tests only raise the exception."""
    source, output = write(tmp_path / "many.jsonl", 1000), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "pard2", "data", "regenerate", "-t", target_directory, "-i", source, "-o", output]
    options = ["--batch-size", "1", "--max-new-tokens", "60", "--dtype", "float32"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it, and so would this one
    )
    deadline = time.monotonic() + 90
    while not (output.exists() and output.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == b"" and b"Traceback" not in err and b"the same command goes on from there" in err
    assert 0 < len(read_records(output)) < 1000
