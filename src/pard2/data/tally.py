"""What became of answers that were not simply learned as their records say, counted by kind."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pard2.errors import Pard2Error

_MOST_ARGUMENTS = 16  # a template that gets a date from each record, say, is not told from others by its arguments


def told(counts: Mapping[str, int]) -> str:
    """The counts of a tally, to follow other words of a line."""
    return "".join(f"; {count:,} {kind}" for kind, count in counts.items())


@dataclass
class Tally:
    """What was counted.

    strict: raise in place of leaving out.
    counts: of each kind, worded to follow its number.
    arguments: the different `chat_template_kwargs` of all records; None where they are unknown, or too many.
    first: why the first answer was left out, None where none was.
    lost: of how many records nothing is learned.
    """

    strict: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    arguments: list[dict[str, Any]] | None = field(default_factory=list)
    first: str | None = None
    lost: int = 0

    def leave_out(self, kind: str, why: str) -> None:
        """Count an answer of which nothing is learned. Raises `Pard2Error` if strict."""
        if self.strict:
            raise Pard2Error(why)
        self.counts[f"answers left out: {kind}"] += 1
        self.first = self.first or why

    def used(self, arguments: dict[str, Any]) -> None:
        if self.arguments is not None and arguments not in self.arguments:
            self.arguments = [*self.arguments, arguments] if len(self.arguments) < _MOST_ARGUMENTS else None

    def add(self, counts: Mapping[str, int], arguments: list[dict[str, Any]] | None) -> None:
        """Take in those of examples that were made before."""
        self.counts.update(counts)
        self.arguments = None if arguments is None else self.arguments
        for one in arguments or ():
            self.used(one)

    def check(self, source: str, records: int) -> None:
        """Raises `Pard2Error` where nothing was learned of most of a source's records.

        They are not what the template was written for.
        """
        if self.lost > records / 2:
            raise Pard2Error(f"{source}: {self.first}" + (f" (and {self.lost - 1:,} of {records:,} records like it)" if self.lost > 1 else ""))
        self.first, self.lost = None, 0
