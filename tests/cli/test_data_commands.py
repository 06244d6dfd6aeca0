"""`data synthesize` and `regenerate`: checked before they start, resumable, never
over somebody else's file."""

import filecmp
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fake_endpoint import fake_endpoint, slowly, status
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


@pytest.fixture
def server():
    with fake_endpoint("org/target") as server:
        yield server


@pytest.fixture
def ask(pard2, prompts, server):
    return lambda *options: pard2(
        "data", "regenerate", "-t", "org/target", "-i", prompts, "--endpoint", server.address, "--max-new-tokens", 4, *options
    )


def test_an_endpoint_answers_and_no_target_is_loaded(ask, server, tmp_path, monkeypatch):
    """`org/target` is nowhere. Fails if the answers are not what a local run would have recorded."""
    monkeypatch.setenv("FAKE_KEY", "secret\n")
    server.script = {"hello 1": [status(400, "too long")]}
    result = ask("-o", tmp_path / "out", "--api-key-env", "FAKE_KEY", "--concurrency", 2, "--retries", 0, "--timeout", 9)
    assert result.code == 0 and result.out == "" and "secret" not in result.err
    assert "not answered: p1: 400: too long" in result.err
    assert f"4 of 5 answered, 1 could not be, listed in {tmp_path / 'out'}.failures.jsonl" in result.err
    assert json.loads((tmp_path / "out.failures.jsonl").read_text()) == {"id": "p1", "error": "400: too long"}
    made = {record["id"]: record for record in read_records(tmp_path / "out")}
    assert made["p0"]["messages"][-1]["content"] == "echo hello 0" and made["p0"]["model"] == "org/target"
    assert made["p0"]["settings"] == {"max_new_tokens": 4, "temperature": 0.0}
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}

    assert "5 of 5 answered, 0 could not be" in ask("-o", tmp_path / "out").err
    assert server.asked["hello 1"] == 2 and server.asked["hello 0"] == 1
    assert not (tmp_path / "out.failures.jsonl").exists()
    server.close()
    assert ask("-o", tmp_path / "out").code == 0  # nothing is left to ask


def test_options_of_the_other_way_to_answer_are_refused_by_name(ask, regenerate, tmp_path):
    """They would do nothing, unseen."""
    for option in (("-d", "smollm2"), ("--batch-size", 32), ("--dtype", "float32"), ("--device", "cpu")):
        assert f"{option[0]} does not go with --endpoint" == ask("-o", tmp_path / "out", *option).error
    for option in (("--model", "x"), ("--concurrency", 32), ("--api-key-env", "X"), ("--timeout", 9), ("--retries", 1), ("--extra-body", "{}")):
        assert f"{option[0]} needs --endpoint" == regenerate("-o", tmp_path / "out", *option).error


def test_an_endpoint_that_cannot_answer_is_one_line_and_nothing_is_written(ask, server, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    output = tmp_path / "out"
    assert "does not serve 'other'; name what it serves with --model: org/target" in ask("-o", output, "--model", "other").error
    assert "--api-key-env NO_SUCH_KEY: the environment holds no such variable" in ask("-o", output, "--api-key-env", "NO_SUCH_KEY").error
    assert "--extra-body '[1]' is not a JSON object" in ask("-o", output, "--extra-body", "[1]").error
    assert "is not an address" in ask("-o", output, "--endpoint", "host:1").error
    assert server.requests == []
    server.close()
    assert "Connection refused; is the server up?" in ask("-o", output).error
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_fields_that_may_change_answers_must_stay_the_same(ask, server, tmp_path):
    server.script = {"hello 1": [status(400)]}
    extra = ("--extra-body", '{"repetition_penalty": 1.0}')
    assert ask("-o", tmp_path / "out", *extra).code == 0
    assert server.requests[0]["repetition_penalty"] == 1.0
    assert 'made with --extra-body {"repetition_penalty": 1.0}, and this is no --extra-body' in ask("-o", tmp_path / "out").error
    assert ask("-o", tmp_path / "out", *extra).code == 0
    assert len(read_records(tmp_path / "out")) == 5


@pytest.mark.slow
def test_a_kill_in_the_middle_asks_again_only_for_what_is_missing(ask, prompts, server, tmp_path):
    write(prompts, 200)
    server.script = {f"hello {n}": [slowly(0.05)] for n in range(200)}
    output = tmp_path / "out"
    command = [sys.executable, "-m", "pard2", "data", "regenerate", "-t", "org/target", "-i", prompts, "-o", output, "--endpoint", server.address]
    options = ["--concurrency", "4", "--max-new-tokens", "4"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    deadline = time.monotonic() + 60
    while len(server.requests) < 50 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    time.sleep(0.3)  # until the server is through with what the killed process had sent
    whole = {json.loads(line)["id"] for line in output.read_bytes().split(b"\n")[:-1]}
    assert 40 <= len(whole) < 200  # fails if answers wait for others, or for the end, to be written
    with output.open("ab") as file:
        file.write(b'{"id": "p199", "mess')  # what a kill within a write leaves
    server.requests.clear()
    server.script.clear()
    assert ask("-o", output).code == 0
    assert server.asked == {f"hello {n}": 1 for n in range(200) if f"p{n}" not in whole}
    assert sorted(record["id"] for record in read_records(output)) == sorted(f"p{n}" for n in range(200))


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
    monkeypatch.setattr(
        Engine,
        "generate",
        lambda *_: iter(
            [Completion(token_ids=[1], text=f"Who is Mister {next(said)}?", finish_reason="stop", prompt_tokens=1, stats=Stats(), method="ar")]
        ),
    )
    output = tmp_path / "out.jsonl"
    output.write_text('{"id": "synthetic-0", "messages": [{"role": "user", "content": "Who are you then?"}]}\n')
    result = pard2("data", "synthesize", "-t", target_directory, "-n", 3, "-o", output)
    assert result.code == 0, result
    assert "2 prompts of up to 128 tokens to write" in result.err and "1 already there" in result.err
    assert [r["id"] for r in read_records(output)] == ["synthetic-0", "synthetic-1", "synthetic-2"]


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
