"""A run's checkpoints: written whole after a step, read back to go on as if nothing had happened.

Random choices are not stored: each is drawn from a generator that is seeded by the run's seed and by what is
drawn (`packed_sequences.generator`), so a resumed run draws what the uninterrupted one would have drawn.
"""

import json
import os.path
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from pard2.config import TrainConfig
from pard2.config_file import absolute, config_of, sections
from pard2.environment import meta
from pard2.errors import Pard2Error
from pard2.files import recover, whole_directory
from pard2.train.origin import Origin

# What may differ between a run and its continuation.
_EVALUATED = ("evaluation_prompts", "evaluation_tokens", "evaluation_weights")
_FREE_FIELDS = {
    "target": {"shape"},
    "draft": {"shape"},
    "data": {"expected_tokens"},
    "loop": {"save_every", "keep_last", "evaluate_every", *_EVALUATED, "device", "output", "sharding", "attention"},
    "features": {"cache", "on_generate"},
    "log": {"tensorboard", "wandb"},
}
_SHOWN_DIFFERENCES = 4
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError)
# What a run leaves in its directory.
_LEFT = {"checkpoints", "draft", "best", "metrics.jsonl", "train.log", "curve.svg", "tensorboard", "wandb", "wandb-run"}


@dataclass
class RunProgress:
    """How far a run has come.

    done: steps taken.
    skipped: steps without an update, in all.
    bad: such steps in a row until now.
    best: acceptance length of the best evaluation, 0 before the first.
    """

    done: int = 0
    skipped: int = 0
    bad: int = 0
    best: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunCheckpoint:
    """A run after some of its steps. Tensors are whole and on the CPU.

    progress: how far it had come.
    steps: of the whole run.
    weights: the draft's state dict.
    optimizer: as `Optimizer.state_dict`.
    average: as `WeightAverage.state_dict`, empty without one.
    origin: what it was trained with, None in a checkpoint of an older version.
    """

    progress: RunProgress
    steps: int
    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    average: dict[str, Tensor]
    origin: Origin | None


class _Saved(BaseModel):
    """`run.json` of a checkpoint: fields as in `RunCheckpoint` and its `RunProgress`."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    step: PositiveInt
    config: TrainConfig
    skipped: NonNegativeInt
    bad: NonNegativeInt
    best: NonNegativeFloat
    origin: Origin | None = None


def check_output(config: TrainConfig) -> None:
    """Raises `Pard2Error` if `loop.output` holds something else than a run.

    So it does for a model that the run starts from: it would be replaced.
    """
    output = Path(config.loop.output)
    written = {os.path.realpath(output / name) for name in (".", "draft", "best")}
    for field, name in (("target.name", config.target.name), ("draft.path", config.draft.path)):
        if name is not None and os.path.isfile(os.path.join(name, "config.json")) and os.path.realpath(name) in written:
            raise Pard2Error(f"loop.output={output} would write over {field}={name}; name another loop.output")
    try:
        there = sorted(os.listdir(output)) if os.path.isdir(output) else []
        began = "metrics.jsonl" in there and _of_steps(output / "metrics.jsonl")
        foreign = [name for name in there if not name.startswith(".") and not (began and name in _LEFT)]
        if foreign and not any((output / "checkpoints").glob("step-*/run.json")):
            raise Pard2Error(f"loop.output={output} holds {foreign[0]!r}, which is of no run; name a new or an empty directory")
    except OSError as error:
        raise Pard2Error(f"cannot read {output}: {error.strerror}") from None


def _of_steps(metrics: Path) -> bool:
    """Whether these are the figures of steps, or none yet.

    Nothing else is left by a run that was stopped before its first checkpoint.
    """
    with open(metrics, "rb") as file:
        return file.readline(9) in (b"", b'{"step": ')


def run_record(config: TrainConfig, step: int, origin: Origin) -> dict[str, Any]:
    """What every checkpoint and draft carries.

    That is the step, the resolved config, what it was trained with, argv, commit, versions, hardware and
    date.
    """
    return {"step": step, "config": config.model_dump(mode="json"), "origin": origin.model_dump(), "meta": meta()}


def save_checkpoint(directory: Path, config: TrainConfig, checkpoint: RunCheckpoint) -> None:
    """Write `directory/step-N` and remove all but the last `loop.keep_last`.

    An older checkpoint stays until the new one is whole. Raises `Pard2Error` where it cannot be written, as
    on a full disk.
    """
    assert checkpoint.origin is not None, "only a checkpoint that was read may lack it"
    tensors = {"weights": checkpoint.weights, "optimizer": checkpoint.optimizer, "average": checkpoint.average}
    progress = checkpoint.progress
    counts = {"skipped": progress.skipped, "bad": progress.bad, "best": progress.best}
    with whole_directory(directory / _name(progress.done)) as beside:
        torch.save(tensors, beside / "state.pt")
        record = run_record(absolute(config), progress.done, checkpoint.origin) | counts
        (beside / "run.json").write_text(json.dumps(record, indent=1))
    for old in _saved(directory)[: -config.loop.keep_last]:
        shutil.rmtree(old, ignore_errors=True)


def resumed_config(output: Path, overrides: list[str]) -> TrainConfig:
    """The run of the newest checkpoint in `output`, changed by `section.field=value` overrides.

    Its directory may have been moved since. What it reads is found where it was.

    Raises `Pard2Error` where there is no run, or nothing of it to go on with.
    """
    newest = _newest(output / "checkpoints")
    if newest is None:
        raise Pard2Error(f"{output} holds no run to resume: there is no checkpoint in it; start a run with its YAML file")
    try:
        saved = _Saved.model_validate_json((newest / "run.json").read_bytes()).config
    except _UNREADABLE:
        raise _unreadable(newest) from None
    # Without defaults: a field that the run left out may have another value in the draft that it began with.
    document = absolute(saved).model_dump(exclude_defaults=True) | {"objective": saved.model_dump()["objective"]}  # whose defaults are the method's
    document["loop"]["output"] = str(output)
    return config_of(document, overrides, str(newest / "run.json"))


def _newest(directory: Path) -> Path | None:
    """The last whole checkpoint, None without one."""
    if directory.is_dir():
        for set_aside in directory.glob(".step-*-old"):
            recover(directory / set_aside.name[1:].removesuffix("-old"))
    return max(_saved(directory), default=None)


def _unreadable(checkpoint: Path) -> Pard2Error:
    return Pard2Error(f"{checkpoint} is no readable checkpoint; remove it to go on from the one before, or name another loop.output")


def load_checkpoint(directory: Path, config: TrainConfig) -> RunCheckpoint | None:
    """The newest checkpoint in `directory`, None for a new run.

    Raises `Pard2Error` if it belongs to a run with another configuration or cannot be read.
    """
    newest = _newest(directory)
    if newest is None:
        return None
    try:
        run = _Saved.model_validate_json((newest / "run.json").read_bytes())
        differing = _difference(run.config, config)
        if differing:
            raise Pard2Error(
                f"{directory.parent} holds a run with another {_named(differing)}; go on with that run by `pard2 train --resume {directory.parent}`, "
                "or name another loop.output"
            )
        if newest.name != _name(run.step) or not run.bad <= run.skipped <= run.step <= run.config.loop.steps:
            raise ValueError
        tensors = torch.load(newest / "state.pt", map_location="cpu", weights_only=True)
        weights, optimizer, average = (tensors[part] for part in ("weights", "optimizer", "average"))
        finite = all(bool(tensor.isfinite().all()) for part in (weights, average, *optimizer.values()) for tensor in part.values())
        if not finite or bool(average) != (config.optimizer.ema is not None):
            raise ValueError
    except _UNREADABLE:
        raise _unreadable(newest) from None
    origin, best = run.origin, run.best
    if any(getattr(run.config.loop, field) != getattr(config.loop, field) for field in _EVALUATED):
        # Evaluations to come are of other prompts or lengths, as was asked for: `best` is chosen among them.
        best, origin = 0.0, None if origin is None else origin.model_copy(update={"evaluation": None})
    return RunCheckpoint(
        progress=RunProgress(run.step, run.skipped, run.bad, best),
        steps=run.config.loop.steps,
        weights=weights,
        optimizer=optimizer,
        average=average,
        origin=origin,
    )


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _saved(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*"))


def _difference(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, with what they were and are.

    A run's number of steps, if it is given in epochs, is known only when the data is.
    """
    then, now = absolute(old).model_dump(), absolute(new).model_dump()
    for words, config in ((then, old), (now, new)):
        words["optimizer"]["warmup_steps"] = config.optimizer.warmup(old.loop.steps)
    if new.loop.steps is None:
        now["loop"] |= {"steps": old.loop.steps, "epochs": old.loop.epochs}
    if old.method != new.method:
        return {"method": (old.method, new.method)}
    fields = [(section, field) for section in sections() for field in now[section] if field not in _FREE_FIELDS.get(section, ())]
    return {f"{s}.{field}": (then[s][field], now[s][field]) for s, field in fields if then[s][field] != now[s][field]}


def _named(differing: dict[str, tuple[Any, Any]]) -> str:
    """The first of them in words."""
    shown = [f"{field} ({then}, not {now})" for field, (then, now) in list(differing.items())[:_SHOWN_DIFFERENCES]]
    more = len(differing) - len(shown)
    return ", ".join(shown) + (f" and {more} more fields" if more else "")
