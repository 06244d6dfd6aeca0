"""A tiny chat model with its drafts on disk, and a way to run commands in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import pytest

from chat_tokenizer import END_ID, MASK_ID, VOCABULARY, byte_tokenizer
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.write import save_draft
from pard2.cli.main import main
from tiny import tiny_draft, tiny_lm_draft, tiny_model

CONTEXT = 160


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a user is told; fails where there are more, or a traceback."""
        assert self.code == 2, self
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in self.err and self.out == "", self
        return errors[0].removeprefix("error: ")


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown model is looked for on the hub; tests must not wait for a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def pard2(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as exit_info:
            main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Result(int(exit_info.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def target_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "target"
    model = tiny_model(layers=3, vocab=VOCABULARY, context=CONTEXT, initializer_range=0.2)
    model.generation_config.eos_token_id = END_ID
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def draft_directory(target_directory: Path) -> Path:
    directory = target_directory.parent / "draft"
    target = load_target(str(target_directory), "float32", "cpu")
    save_draft(tiny_draft(target, [0, 2], draft_tokens=6, projection=0.05, mask_token=MASK_ID), directory)
    return directory


@pytest.fixture(scope="session")
def lm_directory(target_directory: Path) -> Path:
    directory = target_directory.parent / "lm"
    draft = tiny_lm_draft(vocab=VOCABULARY)
    draft.tokenizer = byte_tokenizer()
    save_draft(draft, directory)
    return directory
