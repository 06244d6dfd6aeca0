"""The frame of the command line: start-up, version, words of options."""

import subprocess
import sys

import pytest

from pard2 import __version__
from pard2.cli import flags, options
from pard2.cli.commands import COMMANDS
from pard2.errors import Pard2Error


def _imported_by(code: str) -> set[str]:
    code = f"import sys\n{code}\nprint('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_does_not_wait_for_torch_nor_for_what_draws():
    """A slip of one import would cost its time at every call."""
    code = "import pard2.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass"
    assert not _imported_by(code) & {"torch", "transformers", "pydantic_core", "rich", "pard2.cli.bench"}


def test_commands_are_known_without_torch():
    code = "from pard2.cli.commands import COMMANDS, app\nimport typer\nfor name in COMMANDS: typer.main.get_command(app).get_command(None, name)"
    imported = _imported_by(code)
    assert {f"pard2.cli.{name.split()[-1]}" for name in COMMANDS} <= imported and not imported & {"torch", "transformers", "pydantic_core"}


def test_version_and_help(pard2):
    assert pard2("--version").out == f"pard2 {__version__}\n"
    for command in (*([name] for name in COMMANDS), ["draft", "init"], ["draft", "info"], ["data", "preview"]):
        done = pard2(*command, "-h")
        assert done.code == 0 and " ".join(command) in done.out
    assert all(f"  {name} " in pard2("--help").out for name in COMMANDS)


def test_errors_may_hold_brackets(pard2):
    """Rich would read [/x] as markup and fail."""
    assert "no model '[/x]'" in pard2("generate", "-t", "[/x]", "-p", "y").error


def test_parse_logit_bias():
    assert flags.parse_logit_bias(["7=1.5", "0=-100"]) == {7: 1.5, 0: -100.0}
    assert flags.parse_logit_bias([]) == {}


def test_parse_list():
    assert options.parse_list("--layers", "-1,-8", int) == [-1, -8]
    with pytest.raises(Pard2Error, match="--layers '1,x'"):
        options.parse_list("--layers", "1,x", int)
