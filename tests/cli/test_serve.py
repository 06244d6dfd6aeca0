"""`serve`: what a user can get wrong, and a real process from its start to its end."""

import errno
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from pard2.cli import serve as command
from pard2.serve import address
from pard2.serve.settings import KEY_VARIABLE
from tiny import tiny_model


@pytest.fixture
def serve(pard2, target_directory, draft_directory, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    common = ("serve", "-t", target_directory, "-d", draft_directory, "--dtype", "float32", "--device", "cpu", "--port", 0)
    return lambda *options: pard2(*common, *options)


@pytest.fixture
def never_loaded(monkeypatch):
    """What is wrong with the command line is told before the long load."""

    def load(*_):
        raise AssertionError("the models were loaded")

    monkeypatch.setattr("pard2.cli.options.Models.load", load)


@pytest.mark.usefixtures("never_loaded")
def test_an_address_that_cannot_be_had_is_told_before_the_load(serve, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve("--port", port).error == f"--port {port} is in use at 127.0.0.1; give another, or 0 for a free one"
    assert "--host 'no.such.host.invalid' is no address" in serve("--host", "no.such.host.invalid").error
    assert "--host '192.0.2.1' is no address of this machine" in serve("--host", "192.0.2.1").error  # of a network that nobody has
    assert "--port 70000" in serve("--port", 70000).error

    class Refusing(socket.socket):
        def bind(self, _):
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(address.socket, "socket", Refusing)
    assert serve("--port", 80).error == "--port 80 may not be used by you; give one above 1023"


@pytest.mark.usefixtures("never_loaded")
def test_keys_that_are_none(serve, monkeypatch):
    assert "--api-key (or PARD2_API_KEY) is empty" in serve("--api-key", "").error
    assert "is empty" in serve("--api-key", "  ").error
    told = serve("--api-key", "se same").error
    assert "holds more than" in told and "same" not in told
    assert "--protect-metrics needs a key" in serve("--protect-metrics").error
    monkeypatch.setenv(KEY_VARIABLE, "")  # whoever sets it does not want a server without a key
    assert "PARD2_API_KEY" in serve().error


@pytest.mark.usefixtures("never_loaded")
def test_templates_that_do_not_compile(serve, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}\n{{ m.content }")
    told = serve("--chat-template", file).error
    assert told.startswith(f"--chat-template {file} is no template that compiles: line 2:")
    file.write_text(" \n")
    assert "empty" in serve("--chat-template", file).error
    assert "No such file" in serve("--chat-template", tmp_path / "none").error


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_names_the_extra(serve, package, monkeypatch):
    find = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == package else find(name))
    assert serve().error == f"`pard2 serve` needs the package {package.replace('_', '-')}: pip install 'pard2[serve]'"


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    "words",
    [
        *("--timeout=0", "--max-waiting=-1", "--max-body=0", "--drain-seconds=-1", "--log-format=xml", "--engines=-1"),
        *("--max-new-tokens=0", "--served-model-name=", "--host="),
    ],
)
def test_a_value_that_means_nothing_names_its_flag(serve, words):
    assert serve(words).error.startswith(words.partition("=")[0])


def test_models_that_cannot_be_served(serve, pard2, target_directory, draft_directory, tmp_path):
    assert "moood" in serve("--template-arg", "moood=1").error
    other = tmp_path / "other"
    tiny_model(layers=2, hidden=48, vocab=61).save_pretrained(other)
    assert pard2("serve", "-t", other, "-d", draft_directory, "--port", 0).error
    bare = tmp_path / "bare"
    shutil.copytree(target_directory, bare, ignore=shutil.ignore_patterns("tokenizer*", "special*", "chat_template*", "added*", "vocab*"))
    assert "no tokenizer" in pard2("serve", "-t", bare, "--port", 0, "--dtype", "float32").error


@pytest.mark.slow
def test_a_process_serves_and_drains_at_sigterm(target_directory, draft_directory, tmp_path):
    words = f"serve -t {target_directory} -d {draft_directory} --dtype float32 --device cpu --port 0 --log-format json --api-key sesame"
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    process = subprocess.Popen(
        [sys.executable, "-m", "pard2", *words.split(), "--served-model-name", "tiny", "--chat-template", str(template)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        text=True,
    )
    try:
        told = ""
        for line in process.stderr:
            told += line
            if line.startswith("curl "):
                break
        curl = shlex.split(told.splitlines()[-1])
        assert curl[0] == "curl" and "Authorization: Bearer KEY" in curl, told
        assert re.search(r"tiny: .*target on cpu, drafted by .*draft \(pard2-td\); .* held", told) and "16 places" in told and "context 160" in told
        address, body = re.match(r"http://([\d.:]+)/v1/chat/completions", curl[1])[1], json.loads(curl[-1])
        connection = http.client.HTTPConnection(address, timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": "Bearer sesame"}
        connection.request("GET", "/v1/models", headers=headers)
        assert str(target_directory.parent) not in connection.getresponse().read().decode()  # where it lies is nobody's business
        long = body | {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
        connection.request("POST", "/v1/chat/completions", json.dumps(long), headers)
        response = connection.getresponse()
        response.read1(1)
        process.send_signal(signal.SIGTERM)
        rest = response.read().decode()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert rest.endswith("data: [DONE]\n\n") and '"prompt_tokens":5' in rest  # the given template shows "Hello" alone
    assert (process.returncode, err) == (0, "stopped\n")
    _, line = map(json.loads, out.splitlines())
    assert line["status"] == 200 and line["finish_reason"] == "length" and "Hello" not in out
