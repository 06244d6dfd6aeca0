"""JSONL files of conversations, written so that a kill at any moment loses at most the last line.

A record is a JSON object with `id` and `messages` (OpenAI style). Other keys are carried along.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pard2.errors import Pard2Error

Record = dict[str, Any]
Message = dict[str, str]


def read_records(path: str | Path) -> list[Record]:
    """All records of a file.

    Raises `Pard2Error` naming the line that is not JSON or has no usable `messages`.
    """
    records = list(_lines(Path(path)))
    if not records:
        raise Pard2Error(f"{path} holds no records")
    return records


def _lines(path: Path) -> Iterator[Record]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise Pard2Error(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise Pard2Error(f"{where} is not JSON: {error.msg}") from None
    messages = record.get("messages") if isinstance(record, dict) else None
    good = (
        isinstance(messages, list)
        and messages
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages)
    )
    if not good:
        raise Pard2Error(f"{where} has no `messages` list of objects with `role` and `content`")
    given = record.get("id")
    # Without the folder, so that a run resumed from elsewhere knows its records again.
    record["id"] = Path(where).name if given is None else str(given)
    return record


def up_to_user(record: Record) -> list[Message]:
    """A record's messages up to its last user turn, which is what is left to answer; empty if no user speaks."""
    messages = list(record["messages"])
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    return messages


class RecordWriter:
    """Appends records to a JSONL file that may hold the first part of the same work.

    `done` holds the ids already there. A last line without its newline, left by a kill, is cut off. Raises
    `Pard2Error` for a file that cannot be written or holds something other than records, which stays as it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():
            raise Pard2Error(f"cannot write {path}: it is not a regular file")
        existing, torn = self._read_existing() if self.path.exists() else ([], 0)
        self.done: set[str] = {record["id"] for record in existing}
        self._created = not self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115 - closed by close()
            if torn:
                self._file.truncate(self.path.stat().st_size - torn)
        except OSError as error:
            raise Pard2Error(f"cannot write {path}: {error.strerror}") from None

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
            return [_parse(line, f"{self.path}:{n}") for n, line in enumerate(whole.decode().split("\n"), 1) if line.strip()], len(torn)
        except (Pard2Error, UnicodeDecodeError):
            raise foreign from None

    def write(self, records: Iterable[Record]) -> None:
        """Append whole lines and hand them to the disk."""
        try:
            for record in records:
                self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
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
