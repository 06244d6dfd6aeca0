"""A run's YAML file and its overrides, read into the schema of `config`."""

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pard2.config import TrainConfig
from pard2.config_paths import place
from pard2.errors import Pard2Error


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML run and apply `section.field=value` overrides, whose values are YAML too.

    Relative paths in the file lead from its directory (from the working directory, if it is a pipe); those
    of overrides from the working directory, as everywhere on a command line.

    Raises `Pard2Error`, one line, for a file that is no YAML mapping, an override that is no
    assignment, an unknown key (with the nearest known one), or a value of the wrong type.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Pard2Error(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2020-99-99, a NUL in the path, nested too deeply
        raise Pard2Error(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise Pard2Error(f"{path} must be a mapping of sections ({', '.join(sections())})")
    place(document, os.path.dirname(path) if os.path.isfile(path) else "")
    return config_of(document, overrides or [], str(path))


def config_of(document: dict[str, Any], overrides: list[str], where: str) -> TrainConfig:
    """A run out of its sections, changed by `section.field=value` overrides.

    where: the sections come from; errors begin with it.

    Raises `Pard2Error` as `load_config` does.
    """
    for override in overrides:
        _apply(document, override)
    try:
        return TrainConfig.model_validate(document)
    except ValidationError as error:
        raise Pard2Error(f"{where}: {_explain(error)}") from None


def absolute(config: TrainConfig) -> TrainConfig:
    """The run with all its paths absolute, to be found from any directory."""
    document = config.model_dump()
    place(document, os.getcwd())
    return TrainConfig.model_validate(document)


def sections() -> list[str]:
    """The names of a run's sections; `method` is none."""
    return [name for name in TrainConfig.model_fields if name != "method"]


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if equals and key == "method":
        document[key] = text
        return
    section, dot, field = key.partition(".")
    if not equals or not dot:
        raise Pard2Error(f"override {override!r} is not of the form section.field=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Pard2Error(f"override {override!r}: the value is not YAML") from None
    inner = document[section] = {} if document.get(section) is None else document[section]  # a bare `section:` is None
    if not isinstance(inner, dict):
        raise Pard2Error(f"override {override!r}: {section} is not a section")
    inner[field] = value


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] != "extra_forbidden":
        return f"{where}{': ' if where else ''}{first['msg'].removeprefix('Value error, ')}{more}"
    known = _known_keys(first["loc"][:-1])
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    return f"unknown key {where}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}") + more


def _known_keys(location: tuple) -> list[str]:
    model: Any = TrainConfig
    for part in location:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
