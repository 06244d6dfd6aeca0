"""What making data asks of a decoder. The engine stands above `data`, so a command hands it in as a function.

It does not know what decodes, nor how: temperature, length limit and the draft are the function's own.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from pard2.data.records import Record


class Answer(Protocol):
    """What one prompt brought; the engine's `Completion` is one.

    token_ids: the new tokens. text: without special tokens. finish_reason: "stop" for an answer that ended by itself, "length" for one
    that was cut, "error" for none, with the reason under `error`.
    """

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def text(self) -> str | None: ...

    @property
    def finish_reason(self) -> str: ...

    @property
    def error(self) -> str | None: ...


# From prompts (token ids) and a seed for each to their answers, in this order, each as soon as it is there. An
# answer depends on its own prompt and seed alone. Closing the iterator drops what has not been made yet.
Answerer = Callable[[list[list[int]], list[int]], Iterator[Answer]]


@dataclass(frozen=True)
class Reply:
    """What one conversation brought, whoever answered it.

    text: without special tokens; None where there is none, with the reason under `error`. finish_reason: as of an `Answer`.
    tokens: the answer's length, 0 where nobody says it. kept: what the record shall hold of it beside (`pard2.data.emitted`).
    """

    text: str | None
    finish_reason: str
    tokens: int = 0
    error: str | None = None
    kept: dict[str, Any] = field(default_factory=dict)


# From conversations, each to be answered from its last message on, to all of them with their replies, each as soon as it
# is there, in any order. Closing the generator drops what has not been made yet.
Replier = Callable[[list[Record]], Generator[tuple[Record, Reply]]]


def seed_of(run: int, name: str) -> int:
    """The seed, 0 to 2**63 - 1, of the answer of this name in a run with this seed, whatever was answered before it."""
    return int.from_bytes(blake2b(f"{run}:{name}".encode(), digest_size=8).digest(), "big") >> 1
