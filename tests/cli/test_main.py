"""The frame of the command line: start-up, version, the embedded draft, and `train`."""

import subprocess
import sys

import pytest
import yaml

from pard2 import __version__
from pard2.cli import options
from pard2.errors import Pard2Error
from pard2.models import embedded
from pard2.train import loop


def test_help_does_not_wait_for_torch():
    """Importing torch takes seconds; a slip of one import at the top of a command would cost them at every call."""
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
    assert options.parse_logit_bias(["7=1.5", "0=-100"]) == {7: 1.5, 0: -100.0}
    assert options.parse_logit_bias([]) == {}


def test_parse_numbers():
    assert options.parse_numbers("--layers", "-1,-8") == [-1, -8]
    with pytest.raises(Pard2Error, match="--layers '1,x'"):
        options.parse_numbers("--layers", "1,x")


@pytest.fixture
def run_file(tmp_path, target_directory):
    document = {
        "target": {"name": str(target_directory)},
        "draft": {"layers": 1},
        "data": {"train": [str(tmp_path / "train.jsonl")]},
        "loop": {"output": str(tmp_path / "run"), "steps": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "run.yaml"


def test_train_dry_run_fills_in_the_defaults_and_does_nothing(pard2, run_file, tmp_path):
    result = pard2("train", run_file, "optimizer.lr=0.5", "--dry-run")
    assert result.code == 0 and not (tmp_path / "run").exists()
    assert yaml.safe_load(result.out)["optimizer"]["lr"] == 0.5
    (tmp_path / "again.yaml").write_text(result.out)
    assert pard2("train", tmp_path / "again.yaml", "--dry-run").out == result.out


def test_train_names_a_mistyped_key(pard2, run_file, tmp_path):
    assert "did you mean" in pard2("train", run_file, "optimizer.warmup_step=1", "--dry-run").error
    assert "not of the form section.field=value" in pard2("train", run_file, "lr").error
    assert "cannot read" in pard2("train", tmp_path / "none.yaml").error


def test_train_with_an_empty_loss_mask(pard2, run_file, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"id": "q", "messages": [{"role": "user", "content": "only a question"}]}\n')
    assert "record q: no token to predict" in pard2("train", run_file).error


def test_ctrl_c_in_training_says_how_to_go_on(pard2, run_file, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    result = pard2("train", run_file)
    assert result.code == 130 and "the same command resumes" in result.err and "Traceback" not in result.err
