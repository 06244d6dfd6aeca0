"""JSONL files of conversations, written so that a kill at any moment loses at most the last line.

A record is a JSON object with `id` and `messages` (OpenAI style). Other keys are carried along.
"""

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
    good = isinstance(messages, list) and messages and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not good:
        raise Pard2Error(f"{where} has no `messages` list of objects with `role` and `content`")
    record.setdefault("id", where)
    return record


class RecordWriter:
    """Appends records to a JSONL file that may hold the first part of the same work.

    `done` holds the ids already there. A last line without its newline, left by a kill, is cut off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+")
        except OSError as error:
            raise Pard2Error(f"cannot write {path}: {error.strerror}") from None
        self._cut_torn_line()
        self._file.seek(0)
        self.done: set[str] = {json.loads(line)["id"] for line in self._file if line.strip()}

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

    def write(self, records: Iterable[Record]) -> None:
        """Append whole lines and hand them to the operating system."""
        for record in records:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self.done.add(record["id"])
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
