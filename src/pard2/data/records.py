"""JSONL files of conversations, written so that a kill at any moment loses at most the last line.

A record is a JSON object with `id` and `messages` (`pard2.data.conversations`). Other keys are carried along.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path

from pard2.data.conversations import Message, Record, to_record, up_to_user
from pard2.data.sources import open_source
from pard2.errors import Pard2Error
from pard2.reading import parse_json

__all__ = ["Message", "Record", "RecordWriter", "read_records", "up_to_user"]


def read_records(source: str | Path) -> list[Record]:
    """All records of a JSONL file, a Parquet file or a data set (`pard2.data.sources`), in the form of `pard2.data.conversations`.

    Raises `Pard2Error` naming the line that is not JSON or has no usable `messages`, and for a source without records.
    """
    records = [to_record(row, where) for where, row in open_source(source).rows()]
    if not records:
        raise Pard2Error(f"{source} holds no records")
    return records


class RecordWriter:
    """Appends records to a JSONL file that may hold the first part of the same work.

    `done` holds the ids already there. A last line without its newline, left by a kill, is cut off. Raises
    `Pard2Error` for a file that cannot be written, that another run is writing, or that holds something other than records, which stays as it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():
            raise Pard2Error(f"cannot write {path}: it is not a regular file")
        self._created = not self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise Pard2Error(f"cannot write {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            existing, torn = self._read_existing()
            self._file.truncate(self.path.stat().st_size - torn)
        except OSError as error:
            self._file.close()
            held = isinstance(error, BlockingIOError)
            raise Pard2Error(
                f"another run is writing to {path}; wait for it, or name another file with -o" if held else f"cannot write {path}: {error.strerror}"
            ) from None
        except Pard2Error:
            self._file.close()
            raise
        self.done: set[str] = {record["id"] for record in existing}

    def _read_existing(self) -> tuple[list[Record], int]:
        """The whole lines, and the number of bytes of a torn last one."""
        try:
            whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        except OSError as error:
            raise Pard2Error(f"cannot read {self.path}: {error.strerror}") from None
        foreign = Pard2Error(f"{self.path} exists and holds something other than records; name another file with -o, or give --force")
        if torn and not torn.startswith(b"{"):
            raise foreign
        try:
            lines = enumerate(whole.decode().split("\n"), 1)
            return [to_record(parse_json(line), f"{self.path}:{n}") for n, line in lines if line.strip()], len(torn)
        except (Pard2Error, ValueError):
            raise foreign from None

    def write(self, records: Iterable[Record]) -> None:
        """Append whole lines and hand them to the disk."""
        try:
            for record in records:
                # Columns that are carried along may hold dates and the like.
                self._file.write(json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n")
                self.done.add(record["id"])
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise Pard2Error(f"cannot write {self.path}: {error.strerror}; what it holds is kept, the same command goes on from there") from None

    def close(self) -> None:
        """Close the file; one that this writer made and left empty is taken away again."""
        with contextlib.suppress(OSError):  # a full disk has been reported by write()
            self._file.close()
        if self._created and not self.done:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
