"""Where rows come from: a JSONL file, a Parquet file, or a data set of the hub. It does not know what a row means."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pard2.errors import Pard2Error, first_line

_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")
_FILE_NAME = re.compile(r".*\.(jsonl|json|parquet)", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """name: as the user said it. count: rows. file: the file that holds them, None for a data set.

    `rows()` starts anew at each call and yields every row with its place, `file:line` or `name:row`.
    """

    name: str
    count: int
    file: Path | None
    rows: Callable[[], Iterator[tuple[str, Any]]]


def open_source(name: str | Path) -> Source:
    """A file or directory of that name if there is one, else the hub's data set `org/name[/config][:split]`, split `train` by default.

    A directory is read as a data set is. Raises `Pard2Error`, as `rows()` does later, for what cannot be read.
    """
    name = str(name)
    path = Path(name)
    if path.is_dir():
        return _data_set(name, name, None, "train")
    if not path.exists() and not _FILE_NAME.fullmatch(name):
        folder, _, split = name.rpartition(":")
        if folder and Path(folder).is_dir():
            return _data_set(name, folder, None, split)
        if hub := _HUB_NAME.fullmatch(name):
            return _data_set(name, hub["name"], hub["config"], hub["split"] or "train")
    return _parquet(name) if path.suffix.lower() == ".parquet" else _json_lines(name)


def _json_lines(name: str) -> Source:
    def lines() -> Iterator[tuple[int, str]]:
        try:
            with open(name, encoding="utf-8") as file:
                yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise Pard2Error(f"cannot read {name}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None

    def rows() -> Iterator[tuple[str, Any]]:
        for number, line in lines():
            try:
                yield f"{name}:{number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise Pard2Error(f"{name}:{number} is not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None

    return Source(name, sum(1 for _ in lines()), Path(name), rows)


def _parquet(name: str) -> Source:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Pard2Error(f"{name}: reading Parquet needs pyarrow; pip install 'pard2[train]'") from None

    def opened() -> Any:
        try:
            return pyarrow.parquet.ParquetFile(name)
        except (OSError, pyarrow.ArrowException) as error:
            raise Pard2Error(f"cannot read {name}: {getattr(error, 'strerror', None) or first_line(error)}") from None

    def rows() -> Iterator[tuple[str, Any]]:
        number = 0
        with opened() as file:
            try:
                for batch in file.iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{name}:{number}", _without_nulls(row)
            except (OSError, pyarrow.ArrowException) as error:
                raise Pard2Error(f"cannot read {name} after row {number}: {first_line(error)}") from None

    with opened() as file:
        return Source(name, file.metadata.num_rows, Path(name), rows)


def _data_set(shown: str, name: str, config: str | None, split: str) -> Source:
    try:
        import datasets
    except ImportError:
        raise Pard2Error(f"{shown}: reading a data set needs the package datasets; pip install 'pard2[train]'") from None
    try:
        data = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub, the network and every file format fail in their own ways
        missing = "" if Path(name).is_dir() else ", and there is no local file of that name"
        raise Pard2Error(f"cannot load data set {shown!r}: {first_line(error)}{missing}") from None

    def rows() -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(data, 1):
            yield f"{shown}:{number}", _without_nulls(row)

    return Source(shown, len(data), None, rows)


def _without_nulls(value: Any) -> Any:
    """Columns give every object the keys of all; those that an object lacked are null, and a chat template would take them for given."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
