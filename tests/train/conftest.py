"""Fixtures of training runs that take a second."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from train_runs import CONVERSATIONS, save_target, write_records

from pard2.config import TrainConfig
from pard2.config_methods import without_unfit

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def target_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("models") / "target")


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def make_config(target_directory: Path, tmp_path: Path) -> MakeConfig:
    """A run of 6 steps; keyword arguments are sections that change fields: `loop={"steps": 3}`.

    What of the usual fields does not fit the method is left out.
    """
    data = write_records(tmp_path / "data.jsonl", CONVERSATIONS)

    def make(method: str = "pard2", **changes: dict) -> TrainConfig:
        sections: dict[str, Any] = {
            "target": {"name": str(target_directory)},
            "draft": {"layers": [0, 2], "target_layers": [-1, -2]},
            "data": {"train": [str(data)], "max_length": 80, "on_long": "cut"},
            "objective": {"draft_tokens": 4, "feature_drop": 0.3},
            "optimizer": {"lr": 3e-3, "warmup_steps": min(2, changes.get("loop", {}).get("steps") or 2)},
            "loop": {"output": str(tmp_path / "run"), "steps": 6, "rows_per_step": 2, "save_every": 2, "seed": 3, "device": "cpu"},
        }
        without_unfit(method, sections)["method"] = method
        for section, fields in changes.items():
            sections[section] = sections.get(section, {}) | fields
        return TrainConfig.model_validate(sections)

    return make
