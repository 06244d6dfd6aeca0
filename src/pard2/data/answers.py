"""What data generation needs from a decoder. The engine is a floor above `data`, so a command passes it in.

It does not know what decodes, nor how: temperature, length limit and the draft are the caller's business.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from pard2.data.records import Record


class Answer(Protocol):
    """The answer to one prompt; the engine's `Completion` is one.

    token_ids: the new tokens.
    text: without special tokens.
    finish_reason: "stop" for an answer that ended by itself, "length" for one that was cut, "error" for none.
    error: why there is none.
    """

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def text(self) -> str | None: ...

    @property
    def finish_reason(self) -> str: ...

    @property
    def error(self) -> str | None: ...


# Takes prompts (token ids) and a seed for each; yields their answers in this order, each as soon as it is
# ready. An answer depends on its own prompt and seed only. Closing the iterator cancels the answers that are
# not ready.
Answerer = Callable[[list[list[int]], list[int]], Iterator[Answer]]


@dataclass(frozen=True)
class Reply:
    """The answer to one conversation, from whichever model.

    text: without special tokens; None where there is no answer.
    finish_reason: as of an `Answer`.
    tokens: the answer's length; 0 where it is unknown.
    error: why there is no answer.
    kept: further fields for the answered record (`pard2.data.emitted`).
    """

    text: str | None
    finish_reason: str
    tokens: int = 0
    error: str | None = None
    kept: dict[str, Any] = field(default_factory=dict)


# Takes conversations, each to be answered after its last message; yields all of them with their replies, each
# as soon as it is ready, in any order. Closing the generator cancels the replies that are not ready.
Replier = Callable[[list[Record]], Generator[tuple[Record, Reply]]]


def seed_of(run: int, name: str) -> int:
    """The seed of one answer, 0 to 2**63 - 1; it does not depend on what was answered before.

    run: the run's seed.
    name: of the answer, unique within the run.
    """
    return int.from_bytes(blake2b(f"{run}:{name}".encode(), digest_size=8).digest(), "big") >> 1
