"""Suites: the prompts that a benchmark asks, from files or by a known name. It knows no tokenizer."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pard2.bench.named_suites import NAMED_SUITES, read_named
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
    source: where the prompts of a suite that was asked for by its name are from; None for a file
    follows: of each record the number of the one whose prompt, and the target's answer to it, come before
        its own turn; None for one that stands alone
    """

    name: str
    ids: tuple[str, ...]
    prompts: tuple[list[Message] | Record, ...]
    source: str | None = None
    follows: tuple[int | None, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Tells one choice of prompts from another."""
        return hashlib.sha256(json.dumps(self.prompts if set(self.follows) <= {None} else (self.prompts, self.follows)).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """What results say of it; the different `chat_template_kwargs`, and the source, only where there are
        any.
        """
        arguments = distinct_arguments(self.prompts)
        said = {"name": self.name, "prompts": len(self.prompts), "digest": self.digest}
        return said | ({"source": self.source} if self.source else {}) | ({"chat_template_kwargs": arguments} if any(arguments) else {})


def read_suites(names: Sequence[str | Path], most: int | None = None, arguments: dict[str, Any] | None = None) -> list[Suite]:
    """Each name of `NAMED_SUITES`, or file, as a suite; a file's is named for it (`eval_gsm8k.jsonl` is
    gsm8k).

    most: how many records of each, the first ones; None for all
    arguments: what the chat template gets, where a record does not say otherwise

    Raises `Pard2Error` for a name that nobody has, a file without records, a record without a user's message,
    and two suites of one name.
    """
    check_suites(names)
    suites = [_read_suite(str(name), most, arguments) for name in names]
    for number, suite in enumerate(suites):
        if suite.name in [other.name for other in suites[:number]]:
            raise Pard2Error(f"`suites` {names[number]}: another suite is called {suite.name!r} already; rename the file")
    return suites


def check_suites(names: Sequence[str | Path]) -> None:
    """Raises `Pard2Error` for a name that is no known suite's and cannot be a path."""
    for name in map(str, names):
        if name not in NAMED_SUITES and re.fullmatch(r"[\w-]+", name) and name != "-" and not Path(name).exists():
            raise Pard2Error(
                f"`suites` {name!r}: there is no suite of that name; known are {', '.join(NAMED_SUITES)}, and a path to JSONL works, too"
            )


def _read_suite(name: str, most: int | None, arguments: dict[str, Any] | None) -> Suite:
    if name in NAMED_SUITES:
        called, records, source = read_named(name)
    else:
        called, records, source = Path(name).stem.removeprefix("eval_"), read_records(name), None
    asked, follows = _turns(records, most)
    prompts = tuple(to_prompts(asked, arguments, f"`suites` {name}"))
    return Suite(called, tuple(record["id"] for record in asked), prompts, source, () if follows.count(None) == len(follows) else follows)


def _turns(records: list[Record], most: int | None) -> tuple[list[Record], tuple[int | None, ...]]:
    """Each record, and behind it one for each further text of its `turns`; with `Suite.follows`."""
    asked: list[Record] = []
    follows: list[int | None] = []
    for record in records:
        turns = record.get("turns")
        several = turns if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns) else []
        later = [record | {"id": f"{record['id']}-{n}", "messages": [{"role": "user", "content": text}]} for n, text in enumerate(several[1:], 2)]
        follows += [None, *range(len(asked), len(asked) + len(later))]
        asked += [record, *later]
    return asked[:most], tuple(follows[:most])
