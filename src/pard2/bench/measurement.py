"""What one configuration did with one chunk of prompts: counts and times, nothing derived."""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from pard2.bench.plan import Chunk, Configuration
from pard2.engine.request import Completion
from pard2.engine.statistics import Totals


@dataclass(frozen=True)
class Answer:
    """Counts of one prompt. tokens: all new ones, that of the prompt's pass included. equal: to plain decoding's, token by token."""

    tokens: int
    cycles: int
    accepted: int
    equal: bool


@dataclass(frozen=True)
class Measurement:
    """totals: every pass counted once. proposed_at[i]: cycles that proposed a token at position i; accepted_at[i]: those that accepted it.

    seconds: wall time of the chunk, prompts included.
    """

    configuration: Configuration
    chunk: Chunk
    totals: Totals
    answers: tuple[Answer, ...]
    proposed_at: tuple[int, ...]
    accepted_at: tuple[int, ...]
    seconds: float

    @classmethod
    def of(
        cls,
        configuration: Configuration,
        chunk: Chunk,
        completions: Sequence[Completion],
        base: Sequence[Completion],
        totals: Totals,
        seconds: float,
    ) -> "Measurement":
        """base: what plain decoding made of the same prompts."""
        answers = tuple(
            Answer(len(ours.token_ids), ours.stats.cycles, ours.stats.accepted, ours.token_ids == theirs.token_ids)
            for ours, theirs in zip(completions, base, strict=True)
        )
        cycles = [pair for one in completions for pair in zip(one.stats.proposed_per_cycle, one.stats.accepted_per_cycle, strict=True)]
        positions = range(max((proposed for proposed, _ in cycles), default=0))
        proposed_at = tuple(sum(proposed > position for proposed, _ in cycles) for position in positions)
        accepted_at = tuple(sum(accepted > position for _, accepted in cycles) for position in positions)
        return cls(configuration, chunk, totals, answers, proposed_at, accepted_at, seconds)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"answers": [astuple(answer) for answer in self.answers]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Measurement":
        """Reads `as_dict`. Raises `KeyError` or `TypeError` for anything else."""
        return cls(
            Configuration(**values["configuration"]),
            Chunk(**values["chunk"]),
            Totals(**values["totals"]),
            tuple(Answer(*answer) for answer in values["answers"]),
            tuple(values["proposed_at"]),
            tuple(values["accepted_at"]),
            values["seconds"],
        )
