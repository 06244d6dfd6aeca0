"""A run's file, and what is said of a mistake in it."""

from pathlib import Path

import pytest
import yaml

from pard2.config_file import load_config
from pard2.errors import Pard2Error

RUN = {"target": {"name": "smollm2"}, "draft": {"layers": 4}, "data": {"train": ["a.jsonl"]}, "loop": {"output": "out", "steps": 10}}


def write_run(directory: Path) -> Path:
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(RUN))
    return path


def refused(path: Path, *overrides: str) -> str:
    """The one line that the run is refused with."""
    with pytest.raises(Pard2Error) as caught:
        load_config(path, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)
