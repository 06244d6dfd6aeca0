"""JSONL files of conversations, written so that a kill at any moment loses at most the last line.

A record is a JSON object with `id` and `messages` (`pard2.data.conversations`). Other keys are kept
unchanged.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from pard2.data.conversations import Message, Record, to_record, up_to_user
from pard2.data.sources import open_source
from pard2.errors import Pard2Error
from pard2.files import new_file, write_whole, writing
from pard2.reading import parse_json

__all__ = ["Message", "Record", "RecordWriter", "read_records", "up_to_user"]


def read_records(source: str | Path) -> list[Record]:
    """All records of a file or data set (`pard2.data.sources`), in the form of `pard2.data.conversations`.

    Raises `Pard2Error` for a line that is not JSON or has no usable `messages`, naming it, and for a source
    without records.
    """
    records = [to_record(row, where) for where, row in open_source(source).rows()]
    if not records:
        raise Pard2Error(f"{source} holds no records")
    return records


class RecordWriter:
    """Appends records to a JSONL file that may hold the first part of the same work.

    `done` holds the ids already there; `way_on` says how the work is continued. A last line without its
    newline, left by a kill, is cut off.

    replace: begin anew, with `done` empty; the old file is replaced when the first new record is written.

    Raises `Pard2Error` for a file that cannot be written, that another run is writing, or that holds
    something other than records; it is left unchanged.
    """

    def __init__(self, path: str | Path, replace: bool = False) -> None:
        self.path = Path(path)
        self.done: set[str] = set()
        self._file: IO[bytes] | None = None  # while it is None, the first record makes the file anew
        self.way_on = f"the same command{' without `force`' * replace} goes on from there"
        with ExitStack() as self._held:
            self._held.enter_context(new_file(path, way_out="name another file with `output`"))
            if self.path.exists():
                existing, torn = self._read_existing()
                if not replace:
                    self._open().truncate(self.path.stat().st_size - torn)
                    self.done = {record["id"] for record in existing}
            self._held = self._held.pop_all()

    def _open(self) -> IO[bytes]:
        with writing(self.path):
            # Without a buffer a failed write leaves nothing that would be written later.
            self._file = self._held.enter_context(open(self.path, "ab", buffering=0))  # noqa: SIM115
        return self._file

    def _read_existing(self) -> tuple[list[Record], int]:
        """The complete lines, and the number of bytes of an incomplete last one."""
        try:
            whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        except OSError as error:
            raise Pard2Error(f"cannot read {self.path}: {error.strerror}") from None
        foreign = Pard2Error(f"{self.path} exists and holds something other than records; name another file with `output`")
        if torn and not torn.startswith(b"{"):
            raise foreign
        try:
            lines = enumerate(whole.decode().split("\n"), 1)
            return [to_record(parse_json(line), f"{self.path}:{n}") for n, line in lines if line.strip()], len(torn)
        except (Pard2Error, ValueError):
            raise foreign from None

    def write(self, records: Iterable[Record]) -> None:
        """Append whole lines and sync them to disk; if that fails, the file is as it was before."""
        records = list(records)
        # Other columns of a data set may hold dates and the like.
        data = b"".join(json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n" for record in records)
        if not data:
            return
        if self._file is None:
            write_whole(self.path, data)
            self._open()
        else:
            self._append(data)
        self.done.update(record["id"] for record in records)

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        with writing(self.path, f"; what it holds is kept, {self.way_on}"):
            try:
                while data:
                    data = data[self._file.write(data) :]
                os.fsync(self._file.fileno())
            except BaseException:  # Ctrl-C included
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
                raise

    def close(self) -> None:
        """Close the file and release its lock."""
        self._held.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
