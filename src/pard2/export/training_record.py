"""What a training run wrote of itself beside its draft, as lines of a card."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from pard2.errors import Pard2Error
from pard2.export.machine import machine, software
from pard2.export.markdown import escape
from pard2.units import duration

FILE = "training.json"
_ABSOLUTE = re.compile(r"(^|[=,\s])/(?:[^/=,]*/)*(?=[^/])")  # where something lies on a machine that nobody else has


class TrainingRecord(BaseModel):
    """`training.json`; further keys do not matter.

    step: steps taken. config: of the run, resolved. meta: as `environment.meta`.
    data: conversations that it read, their tokens, and those of their answers.
    trained: what the steps come to; None for what is not known, as all of it in older files.
    """

    model_config = ConfigDict(frozen=True)

    step: NonNegativeInt
    config: dict[str, Any]
    meta: dict[str, Any]
    data: dict[str, NonNegativeInt] | None = None
    trained: dict[str, float | None] | None = None


def read_training_record(directory: Path) -> TrainingRecord | None:
    """None where there is none. Raises `Pard2Error` for a file of something else."""
    path = directory / FILE
    if not path.is_file():
        return None
    try:
        return TrainingRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise Pard2Error(f"cannot read {path}: {error.strerror}") from None
    except ValidationError:
        raise Pard2Error(f"{path} is not what `pard2 train` writes, or damaged; move it away, and tell of the training in `notes`") from None


def without_places(value: Any) -> Any:
    """Absolute paths cut to their last part, however deep they stand."""
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    return _ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def training_rows(record: TrainingRecord) -> list[tuple[str, str]]:
    """Labels and Markdown; a line of which something is not known is left out."""
    config = without_places(record.config)
    said = _Said(config)
    trained, data = record.trained or {}, record.data or {}
    rows = [
        ("method", said("{}", "method")),
        ("starts from", said("{}", "draft.path") or said("layers {} of the target", "draft.layers")),
        ("conversations", _conversations(said, data)),
        ("trained on", _amount(said, record.step, trained)),
        ("time", f"{duration(trained['seconds'])} of steps" if trained.get("seconds") is not None else ""),
        ("hardware", escape(machine(record.meta)) + (f", {trained['processes']:.0f} processes" if (trained.get("processes") or 1) > 1 else "")),
        ("objective", said("{}, K = {}, {} CE + {} KL", *(f"objective.{key}" for key in ("weighting", "draft_tokens", "ce_alpha", "kd_alpha")))),
        ("COD", said("r = {}, at least {}", "objective.retention", "objective.min_retention")),
        ("feature drop", said("{}", "objective.feature_drop")),
        ("optimizer", said("{} at {}, {} to {} of it", *(f"optimizer.{key}" for key in ("kind", "lr", "schedule", "min_lr_ratio")))),
        ("precision", said("{}, the target in {}", "loop.precision", "target.dtype")),
        ("software", escape(software(record.meta))),
    ]
    return [(label, value) for label, value in rows if value]


def recipe(record: TrainingRecord) -> str:
    """The run's file: YAML without what is not set."""
    config = {key: _set(value) for key, value in without_places(record.config).items()}
    return yaml.safe_dump({key: value for key, value in config.items() if value not in (None, {})}, sort_keys=False, allow_unicode=True).rstrip()


def _set(value: Any) -> Any:
    return {key: inner for key, inner in value.items() if inner is not None and key != "shape"} if isinstance(value, dict) else value


class _Said:
    """Fields of a config in words."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def __call__(self, text: str, *places: str) -> str:
        """`text` with the values at these places in it; empty where one is not there."""
        values = [self.at(place) for place in places]
        return "" if None in values else text.format(*(escape(_word(value)) for value in values))

    def at(self, place: str) -> Any:
        value: Any = self._config
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _conversations(said: _Said, data: dict[str, int]) -> str:
    counts = [(f"{data[key]:,} {what}") for key, what in _COUNTS.items() if key in data]
    return "; ".join(filter(None, (said("{}", "data.train"), ", ".join(counts))))


_COUNTS = {"conversations": "conversations", "tokens": "tokens", "answer_tokens": "of them of answers"}


def _amount(said: _Said, steps: int, trained: dict[str, float | None]) -> str:
    tokens = [f"{value:,.0f} {what}" for key, what in _TRAINED.items() if (value := trained.get(key)) is not None]
    rows = said(" of {} rows", "loop.rows_per_step")
    return ", ".join([*tokens, f"{steps:,} steps{rows}"])


_TRAINED = {"tokens": "tokens", "answer_tokens": "of them of answers", "slots": "slots"}
