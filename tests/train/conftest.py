"""A tiny chat model on disk, conversations for it, and runs of a few seconds."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "data")]

from chat_tokenizer import END_ID, VOCABULARY, byte_tokenizer

from pard2.config import TrainConfig
from tiny import tiny_model

MakeConfig = Callable[..., TrainConfig]

CONVERSATIONS = [("a", "one two"), ("bb", "three four five"), ("c c", "six"), ("dd", "seven eight nine ten")]


def save_target(directory: Path, architecture: str = "llama", **shape: int) -> Path:
    model = tiny_model(architecture, layers=3, vocab=VOCABULARY, context=96, **shape)
    model.generation_config.eos_token_id = END_ID
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def write_records(path: Path, conversations: list[tuple[str, str]]) -> Path:
    with open(path, "w") as file:
        for number, (question, answer) in enumerate(conversations):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    return path


@pytest.fixture(scope="session")
def target_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("models") / "target")


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def make_config(target_directory: Path, tmp_path: Path) -> MakeConfig:
    """A run of 6 steps; keyword arguments are sections that change fields: `loop={"steps": 3}`."""
    data = write_records(tmp_path / "data.jsonl", CONVERSATIONS)

    def make(**changes: dict) -> TrainConfig:
        sections: dict[str, dict] = {
            "target": {"name": str(target_directory)},
            "draft": {"layers": [0, 2], "target_layers": [-1, -2]},
            "data": {"train": [str(data)], "max_length": 80},
            "objective": {"draft_tokens": 4, "feature_drop": 0.3},
            "optimizer": {"lr": 3e-3, "warmup_steps": 2},
            "loop": {"output": str(tmp_path / "run"), "steps": 6, "documents_per_step": 2, "save_every": 2, "seed": 3, "device": "cpu"},
        }
        for section, fields in changes.items():
            sections[section] = sections[section] | fields
        return TrainConfig.model_validate(sections)

    return make
