"""Suites: the prompts that a benchmark asks, read from JSONL files. It knows no tokenizer."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pard2.data.arguments import distinct_arguments, to_prompts
from pard2.data.records import Message, Record, read_records
from pard2.errors import Pard2Error


@dataclass(frozen=True)
class Suite:
    """Prompts that are reported together.

    name: as in the results
    ids: of the records
    prompts: of each record messages that end with a user's; a whole record where the template gets more than
        these
    """

    name: str
    ids: tuple[str, ...]
    prompts: tuple[list[Message] | Record, ...]

    @cached_property
    def digest(self) -> str:
        """Tells one choice of prompts from another."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """What results say of it; the different `chat_template_kwargs` only where there are any."""
        arguments = distinct_arguments(self.prompts)
        said = {"name": self.name, "prompts": len(self.prompts), "digest": self.digest}
        return said | ({"chat_template_kwargs": arguments} if any(arguments) else {})


def read_suites(paths: Sequence[Path], most: int | None = None, arguments: dict[str, Any] | None = None) -> list[Suite]:
    """Each file as a suite, named for the file (`eval_gsm8k.jsonl` is gsm8k).

    most: how many records of each file, the first ones; None for all
    arguments: what the chat template gets, where a record does not say otherwise

    Raises `Pard2Error` for a file without records, a record without a user's message, and two files of one
    name.
    """
    suites = [_read_suite(path, most, arguments) for path in paths]
    for number, suite in enumerate(suites):
        if suite.name in [other.name for other in suites[:number]]:
            raise Pard2Error(f"`suites` {paths[number]}: another suite is called {suite.name!r} already; rename the file")
    return suites


def _read_suite(path: Path, most: int | None, arguments: dict[str, Any] | None) -> Suite:
    records = read_records(path)[:most]
    prompts = tuple(to_prompts(records, arguments, f"`suites` {path}"))
    return Suite(path.stem.removeprefix("eval_"), tuple(record["id"] for record in records), prompts)
