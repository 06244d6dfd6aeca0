"""Changes to the files of an EAGLE-3 draft, for tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def change_config(directory: Path, *gone: str, **changes: Any) -> None:
    config = {key: value for key, value in (config_of(directory) | changes).items() if key not in gone}
    (directory / "config.json").write_text(json.dumps(config))


def tensors_of(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = tensors_of(directory)
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
