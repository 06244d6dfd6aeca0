"""The state of a run on disk: written whole after a step, read back to go on as if nothing had happened.

Random choices need no state of their own: each is drawn from a generator seeded by the run's seed and its
place in the run, so a resumed run draws what the uninterrupted one would have drawn.
"""

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pard2.config import TrainConfig
from pard2.environment import meta
from pard2.errors import Pard2Error
from pard2.files import recover, whole_directory

# What may differ between a run and its continuation.
_FREE_FIELDS = {
    "loop": {"save_every", "keep_last", "evaluate_every", "evaluation_prompts", "evaluation_tokens", "device", "output", "sharding", "attention"},
    "features": {"cache", "on_generate"},
    "log": {"tensorboard", "wandb"},
}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError)


@dataclass(frozen=True)
class RunState:
    """A run after `step` steps. Tensors are whole and on the CPU.

    weights: the draft's state dict. optimizer: as `Optimizer.state_dict`. average: as `WeightAverage.state_dict`, empty
    without one. skipped: steps without an update in all. bad: such steps in a row until now. best: acceptance length of the best
    evaluation, 0 before the first.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    average: dict[str, Tensor]
    skipped: int
    bad: int
    best: float


def generator(seed: int, *place: int) -> torch.Generator:
    """A generator for one place of the run, such as (epoch,) or (kind, row)."""
    value = seed
    for number in place:
        value = (value * 1_000_003 + number + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(value)


def run_record(config: TrainConfig, step: int) -> dict[str, Any]:
    """What every checkpoint and draft carries: the step, the resolved config, argv, commit, versions, hardware and date."""
    return {"step": step, "config": config.model_dump(mode="json"), "meta": meta()}


def save_state(directory: Path, config: TrainConfig, state: RunState) -> None:
    """Write `directory/step-N` and remove all but the last `loop.keep_last`; an older state stays until the new one is whole.

    Raises `Pard2Error` where it cannot be written, as on a full disk.
    """
    tensors = {"weights": state.weights, "optimizer": state.optimizer, "average": state.average}
    counts = {"skipped": state.skipped, "bad": state.bad, "best": state.best}
    with whole_directory(directory / f"step-{state.step:08d}") as beside:
        try:
            torch.save(tensors, beside / "state.pt")
        except RuntimeError as error:  # torch's writer reports a full disk as one
            raise OSError(f"{error}".splitlines()[0]) from None
        (beside / "run.json").write_text(json.dumps(run_record(config, state.step) | counts, indent=1))
    for old in _saved(directory)[: -config.loop.keep_last]:
        shutil.rmtree(old, ignore_errors=True)


def load_state(directory: Path, config: TrainConfig) -> RunState | None:
    """The newest state in `directory`, None for a new run.

    Raises `Pard2Error` if it belongs to a run with another configuration or cannot be read.
    """
    if directory.is_dir():
        for set_aside in directory.glob(".step-*-old"):
            recover(directory / set_aside.name[1:].removesuffix("-old"))
    saved = _saved(directory)
    if not saved:
        return None
    newest = saved[-1]
    try:
        run = json.loads((newest / "run.json").read_text())
        differing = _difference(dict(run["config"]), config.model_dump(mode="json"))
        if differing:
            raise Pard2Error(f"{directory.parent} holds a run with another {differing[0]}; name another loop.output, or remove it")
        tensors = torch.load(newest / "state.pt", map_location="cpu", weights_only=True)
        return RunState(
            int(run["step"]),
            tensors["weights"],
            tensors["optimizer"],
            tensors["average"],
            int(run["skipped"]),
            int(run["bad"]),
            float(run["best"]),
        )
    except _UNREADABLE:
        raise Pard2Error(f"{newest} is no readable checkpoint; remove it to go on from the one before, or name another loop.output") from None


def _saved(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*"))


def _difference(old: dict, new: dict) -> list[str]:
    return [
        f"{section}.{field}"
        for section in new
        for field in new[section]
        if field not in _FREE_FIELDS.get(section, ()) and old.get(section, {}).get(field) != new[section][field]
    ]
