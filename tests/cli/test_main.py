"""The frame of the command line: start-up, version, the embedded draft."""

import subprocess
import sys

import pytest

from pard2 import __version__
from pard2.checkpoints import embedded
from pard2.cli import flags, options
from pard2.errors import Pard2Error


def test_help_does_not_wait_for_torch():
    """Importing torch takes seconds; a slip of one import at the top of a command
    would cost them at every call."""
    code = "import sys, pard2.cli.main; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pydantic_core')))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False).returncode == 0


def test_version_and_help(pard2):
    assert pard2("--version").out == f"pard2 {__version__}\n"
    for command in ([], ["generate"], ["draft", "init"], ["draft", "info"], ["data", "preview"], ["train"], ["verify"]):
        assert pard2(*command, "--help").code == 0


def test_errors_may_hold_brackets(pard2):
    """Rich would read [/x] as markup and fail."""
    assert "no model '[/x]'" in pard2("generate", "-t", "[/x]", "-p", "y").error


def test_the_embedded_draft_is_the_embedded_targets_default(monkeypatch):
    monkeypatch.setattr(embedded, "embedded_draft", lambda: "/shipped")
    assert options.choose_draft("smollm2", None, None) == "/shipped"
    assert options.choose_draft("other", "smollm2", "pard2-ti") == "/shipped"
    assert options.choose_draft("smollm2", "mine", None) == "mine"
    assert options.choose_draft("smollm2", None, "ar") is None
    assert options.choose_draft("other", None, None) is None


def test_parse_logit_bias():
    assert flags.parse_logit_bias(["7=1.5", "0=-100"]) == {7: 1.5, 0: -100.0}
    assert flags.parse_logit_bias([]) == {}


def test_parse_list():
    assert options.parse_list("--layers", "-1,-8", int) == [-1, -8]
    with pytest.raises(Pard2Error, match="--layers '1,x'"):
        options.parse_list("--layers", "1,x", int)
