"""Which run makes the draft that another run begins with."""

import os
from pathlib import Path

from pard2.config import TrainConfig
from pard2.config_file import load_config
from pard2.errors import Pard2Error


def check_draft_made(config: TrainConfig, run_file: Path) -> None:
    """Raises `Pard2Error` for a `draft.path` that another run is to make first.

    Such a run is looked for among the YAML files beside this one's.
    """
    path = config.draft.path
    if path is None or os.path.exists(path):
        return
    for file in sorted(run_file.parent.glob("*.yaml")):
        try:
            output = load_config(file).loop.output
        except Pard2Error:  # no run
            continue
        if os.path.abspath(path) in (os.path.abspath(os.path.join(output, name)) for name in ("draft", "best")):
            raise Pard2Error(f"draft.path {path} is not there yet: it is made by `pard2 train {file}`")
