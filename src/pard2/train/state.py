"""The state of a run on disk: written whole after a step, read back to go on as if nothing had happened.

Random choices need no state of their own: each is drawn from a generator seeded by the run's seed and the
step, so a resumed run draws what the uninterrupted one would have drawn.
"""

import json
import pickle
from pathlib import Path

import torch
from torch import nn

from pard2.config import TrainConfig
from pard2.errors import Pard2Error
from pard2.files import recover, whole_directory
from pard2.train.optimizer import Optimizer

# What may differ between a run and its continuation.
_FREE_FIELDS = ("save_every", "evaluate_every", "evaluation_prompts", "evaluation_tokens", "device", "output")


def generator(seed: int, *place: int) -> torch.Generator:
    """A generator for one place of the run, such as (epoch,) or (step, row)."""
    value = seed
    for number in place:
        value = (value * 1_000_003 + number + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(value)


def save_state(directory: Path, step: int, config: TrainConfig, module: nn.Module, optimizer: Optimizer) -> None:
    """Write the state after `step` steps; an older state stays until the new one is whole."""
    with whole_directory(directory) as beside:
        torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, beside / "state.pt")
        (beside / "run.json").write_text(json.dumps({"step": step, "config": config.model_dump(mode="json")}, indent=1))


def load_state(directory: Path, config: TrainConfig, module: nn.Module, optimizer: Optimizer) -> int:
    """Number of steps done, 0 for a new run; fills module and optimizer.

    Raises `Pard2Error` if the directory holds a run with another configuration or cannot be read.
    """
    recover(directory)
    if not directory.is_dir():
        return 0
    try:
        run = json.loads((directory / "run.json").read_text())
        done, saved_config = int(run["step"]), dict(run["config"])
        state = torch.load(directory / "state.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError):
        raise Pard2Error(f"{directory} holds no readable checkpoint; remove it, or name another loop.output") from None
    differing = _difference(saved_config, config.model_dump(mode="json"))
    if differing:
        raise Pard2Error(f"{directory.parent} holds a run with another {differing[0]}; name another loop.output, or remove it")
    try:
        module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, ValueError, RuntimeError):
        raise Pard2Error(f"{directory.parent} holds a run with other models under the same names; name another loop.output, or remove it") from None
    return done


def _difference(old: dict, new: dict) -> list[str]:
    return [
        f"{section}.{field}"
        for section in new
        for field in new[section]
        if field not in _FREE_FIELDS and old.get(section, {}).get(field) != new[section][field]
    ]
