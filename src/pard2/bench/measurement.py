"""What one configuration did with one chunk of prompts: counts and times, nothing derived."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter

from pard2.bench.plan import Chunk, Configuration
from pard2.engine.request import Completion
from pard2.engine.statistics import Totals


class Answer(NamedTuple):
    """Counts of one prompt.

    tokens: all new ones, that of the prompt's pass included
    cycles: of the answer
    accepted: tokens of the draft's
    equal: whether the tokens are those of plain decoding
    """

    tokens: int
    cycles: int
    accepted: int
    equal: bool


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one configuration did with one chunk of prompts.

    totals: counts and times of the chunk, every pass counted once
    answers: one for each prompt
    proposed_at: how many cycles proposed a token at position 0, 1, ..
    accepted_at: how many of these cycles accepted it
    seconds: wall time of the chunk, prompts included
    peak_bytes: its caches, and the most that its passes held beside them and the weights; None where the
        machine does not tell
    """

    configuration: Configuration
    chunk: Chunk
    totals: Totals
    answers: tuple[Answer, ...]
    proposed_at: tuple[int, ...]
    accepted_at: tuple[int, ...]
    seconds: float
    peak_bytes: int | None = None
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # for its parts, too

    @classmethod
    def of(
        cls,
        configuration: Configuration,
        chunk: Chunk,
        completions: Sequence[Completion],
        base: Sequence[Completion],
        totals: Totals,
        seconds: float,
        peak_bytes: int | None = None,
    ) -> "Measurement":
        """Count what the completions say.

        completions: of the chunk's prompts
        base: plain decoding's, of the same prompts
        """
        answers = tuple(
            Answer(len(ours.token_ids), ours.stats.cycles, ours.stats.accepted, ours.token_ids == theirs.token_ids)
            for ours, theirs in zip(completions, base, strict=True)
        )
        cycles = [pair for one in completions for pair in zip(one.stats.proposed_per_cycle, one.stats.accepted_per_cycle, strict=True)]
        positions = range(max((proposed for proposed, _ in cycles), default=0))
        proposed_at = tuple(sum(proposed > position for proposed, _ in cycles) for position in positions)
        accepted_at = tuple(sum(accepted > position for _, accepted in cycles) for position in positions)
        return cls(
            configuration=configuration,
            chunk=chunk,
            totals=totals,
            answers=answers,
            proposed_at=proposed_at,
            accepted_at=accepted_at,
            seconds=seconds,
            peak_bytes=peak_bytes,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"configuration": self.configuration.as_dict()}

    @classmethod
    def from_dict(cls, values: object) -> "Measurement":
        """Reads `as_dict`.

        Raises `ValueError` for anything else: other fields, values of another type, times that are not
        finite.
        """
        # Through JSON: strict, and yet a list is read as the tuple that it was.
        return _reader().validate_json(json.dumps(values))


@cache
def _reader() -> TypeAdapter[Measurement]:
    """Made once: it takes as long as reading a hundred."""
    return TypeAdapter(Measurement)
