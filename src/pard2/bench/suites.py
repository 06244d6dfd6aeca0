"""Suites: the prompts that a benchmark asks, read from JSONL files. It knows no tokenizer."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pard2.data.records import Message, read_records, up_to_user
from pard2.errors import Pard2Error


@dataclass(frozen=True)
class Suite:
    """name: as in the results. ids: of its records. prompts: for each, messages that end with a user's."""

    name: str
    ids: tuple[str, ...]
    prompts: tuple[list[Message], ...]

    @cached_property
    def digest(self) -> str:
        """Tells one choice of prompts from another."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:16]


def read_suites(paths: Sequence[Path], most: int | None = None) -> list[Suite]:
    """Each file as a suite of its first `most` records, named for the file (`eval_gsm8k.jsonl` is gsm8k).

    Raises `Pard2Error` for a file without records, a record that no user speaks in, and two files of one name.
    """
    suites = [_read_suite(path, most) for path in paths]
    for number, suite in enumerate(suites):
        if suite.name in [other.name for other in suites[:number]]:
            raise Pard2Error(f"-s {paths[number]}: another suite is called {suite.name!r} already; rename the file")
    return suites


def _read_suite(path: Path, most: int | None) -> Suite:
    records = read_records(path)[:most]
    prompts = tuple(up_to_user(record) for record in records)
    for record, prompt in zip(records, prompts, strict=True):
        if not prompt:
            raise Pard2Error(f"-s {path}: record {record['id']} has no user message")
    return Suite(path.stem.removeprefix("eval_"), tuple(record["id"] for record in records), prompts)
