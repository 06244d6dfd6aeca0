"""Rows from files of JSON, CSV or Parquet, compressed or not, from pipes, and from data sets of the hub.

It does not know what a row means.
"""

import csv
import glob
import gzip
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from pard2.checkpoints import hub
from pard2.errors import Pard2Error, first_line
from pard2.reading import parse_json

ROW_FORM = '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]} or {"text": "Once upon a time"}'

_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")
_FILE_NAME = re.compile(r".*\.(?P<kind>jsonl|json|csv|tsv|txt|parquet|parq|pq)(\.(gz|xz))?", re.IGNORECASE | re.DOTALL)
_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open}  # by a file's first bytes
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, csv.Error)


@dataclass(frozen=True)
class Source:
    """Rows of one origin.

    name: as the user wrote it.
    count: how many rows there are.
    file: the file that holds them; None for a data set, a pipe, and several files.
    rows: a function that yields, from the beginning at each call, every row after its location, `file:line`
        or `name:row`.
    parts: the sources that a pattern such as `data/*.jsonl` found.
    """

    name: str
    count: int
    file: Path | None
    rows: Callable[[], Iterator[tuple[str, Any]]]
    parts: tuple["Source", ...] = ()


def open_source(name: str | Path) -> Source:
    """The source of this name.

    It is a file or directory if there is one, the files that a pattern finds, standard input for `-`, and
    otherwise the hub's data set `org/name[/config][:split]`, split `train` by default. A directory is read as
    a data set; a pipe is read once and kept in memory.

    Raises `Pard2Error`, as `rows()` does later, for what cannot be read.
    """
    name = str(name)
    if os.path.isdir(name):
        return _data_set(name, name, None, "train")
    file_name = _FILE_NAME.fullmatch(name)
    if name != "-" and not os.path.exists(name):
        if any(sign in name for sign in "*?["):
            return _several(name)
        folder, _, split = name.rpartition(":")
        if folder and os.path.isdir(folder):
            return _data_set(name, folder, None, split)
        if file_name is None and (hub := _HUB_NAME.fullmatch(name)):
            return _data_set(name, hub["name"], hub["config"], hub["split"] or "train")
    kind = file_name["kind"].lower() if file_name else ""
    return _parquet(name) if kind.startswith("p") and os.path.isfile(name) else _text_file(name, kind)


def _several(pattern: str) -> Source:
    parts = tuple(open_source(name) for name in sorted(glob.glob(pattern, recursive=True)))
    if not parts:
        raise Pard2Error(f"cannot read {pattern}: no file has a name of that pattern")
    return Source(pattern, sum(part.count for part in parts), None, lambda: chain.from_iterable(part.rows() for part in parts), parts)


def _text_file(name: str, kind: str) -> Source:
    def rows() -> Iterator[tuple[str, Any]]:
        for number, row in _text_rows(name, kind):
            try:
                yield f"{name}:{number}", parse_json(row) if isinstance(row, str) else row
            except ValueError as error:
                wanted = f"; a row is one line such as {ROW_FORM}" if str(error).startswith("is not JSON") else ""
                raise Pard2Error(f"{name}:{number} {error}{wanted}") from None

    return Source(name, sum(1 for _ in _text_rows(name, kind)), Path(name) if os.path.isfile(name) else None, rows)


def _text_rows(name: str, kind: str) -> Iterator[tuple[int, Any]]:
    """Each row with its line number, or its index in a JSON array, from 1.

    Lines of JSON are not parsed yet, so that rows can be counted quickly.
    """
    with _text(name) as file:
        is_array = kind not in ("jsonl", "csv", "tsv") and file.read(4096).lstrip().startswith("[")
        file.seek(0)
        if is_array:
            yield from enumerate(parse_json(file.read()), 1)
        elif kind in ("csv", "tsv"):
            yield from _table(name, file, "," if kind == "csv" else "\t")
        else:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _table(name: str, file: TextIO, separator: str) -> Iterator[tuple[int, Any]]:
    """Rows of a table whose first line names the columns; an empty cell is None."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long conversation
    reader = csv.reader(file, delimiter=separator, strict=True)
    columns = next(reader, [])
    number = reader.line_num + 1
    for cells in reader:
        if cells:
            if len(cells) != len(columns):
                raise Pard2Error(f"{name}:{number} has {len(cells)} cells, and its first line names {len(columns)} columns")
            yield number, {column: cell or None for column, cell in zip(columns, cells, strict=True)}
        number = reader.line_num + 1


@contextmanager
def _told(cannot: str, more: str = "", errors: Any = _UNREADABLE) -> Iterator[None]:
    """Turn an error of this block into a `Pard2Error` of one line.

    cannot: how the line begins, before the reason.
    more: how it ends.
    errors: the exceptions that are turned; others pass.
    """
    try:
        yield
    except errors as error:
        why = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or first_line(error)
        raise Pard2Error(f"{cannot}: {why}{more}") from None


@contextmanager
def _text(name: str) -> Iterator[TextIO]:
    """The text of a file or pipe, without its byte order mark.

    Raises `Pard2Error` for what is not text, even where this is found only while it is read.
    """
    path = "/dev/stdin" if name == "-" else name
    with _told(f"cannot read {name}"):
        found = os.stat(path)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):  # reading a terminal or a device may never end
            raise OSError(0, "it is neither a file nor a pipe")
        with open(path, "rb") if stat.S_ISREG(found.st_mode) else io.BytesIO(_piped(path, found.st_ino)) as file:
            start = file.read(8)
            file.seek(0)
            unpack = next((unpack for mark, unpack in _COMPRESSED.items() if start.startswith(mark)), None)
            with io.TextIOWrapper(unpack(file) if unpack else file, encoding="utf-8-sig", newline="") as text:
                yield text


@cache
def _piped(path: str, inode: int) -> bytes:
    """All bytes of a pipe. It can be read once only, but rows are counted before they are used."""
    return Path(path).read_bytes()


def _parquet(name: str) -> Source:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Pard2Error(f"{name}: reading Parquet needs pyarrow; pip install 'pard2[train]'") from None
    told = partial(_told, f"cannot read {name}", errors=(*_UNREADABLE, OverflowError, pyarrow.ArrowException))

    def rows() -> Iterator[tuple[str, Any]]:
        with told(), pyarrow.parquet.ParquetFile(name) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
            for number, row in enumerate(chain.from_iterable(batches), 1):
                yield f"{name}:{number}", _without_nulls(row)

    with told(), pyarrow.parquet.ParquetFile(name) as file:
        return Source(name, file.metadata.num_rows, Path(name), rows)


def _data_set(shown: str, name: str, config: str | None, split: str) -> Source:
    missing = "" if os.path.isdir(name) else ", and there is no local file of that name"
    try:
        import datasets
    except ImportError:
        raise Pard2Error(f"{shown}: reading a data set needs the package datasets (pip install 'pard2[train]'){missing}") from None
    # The hub, the network and every file format raise exceptions of their own.
    with _told(f"cannot load data set {shown!r}", missing, Exception):
        try:
            data = datasets.load_dataset(name, config, split=split)
        except Exception:
            if not os.path.isdir(name):
                hub.download(name, ["README.md"], data_set=True)  # raises what the hub refuses, which that error may not tell
            raise

    def rows() -> Iterator[tuple[str, Any]]:
        with _told(f"cannot read data set {shown!r}", errors=Exception):
            for number, row in enumerate(data, 1):
                yield f"{shown}:{number}", _without_nulls(row)

    return Source(shown, len(data), None, rows)


def _without_nulls(value: Any) -> Any:
    """The value without the keys that are null.

    In columns every object has the keys of all; a chat template would take those that it lacked for given.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
