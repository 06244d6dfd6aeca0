"""What a result file holds, summed up: counts and times of one configuration on one suite."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

from pard2.bench.measurement import Measurement
from pard2.bench.plan import Configuration
from pard2.engine.methods import PLAIN
from pard2.engine.statistics import Totals


class Way(NamedTuple):
    """A method with its draft, whatever the suite, batch size and draft length."""

    draft: str | None
    method: str


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one configuration did with one suite, all chunks together; it ran one cycle at least."""

    suite: str
    configuration: Configuration
    measurements: tuple[Measurement, ...]

    @property
    def way(self) -> Way:
        return Way(self.configuration.draft, self.configuration.method)

    @property
    def is_plain(self) -> bool:
        return self.configuration.method == PLAIN

    @cached_property
    def totals(self) -> Totals:
        return sum((one.totals for one in self.measurements), Totals())

    @cached_property
    def sequence_cycles(self) -> int:
        """Cycles, each counted once for every sequence that took part."""
        return sum(answer.cycles for one in self.measurements for answer in one.answers)

    @property
    def sequences(self) -> float:
        """Of a cycle, on average: fewer than the batch size, since the last answers of a chunk end alone."""
        return self.sequence_cycles / self.totals.cycles

    @property
    def acceptance_length(self) -> float:
        return 1 + sum(answer.accepted for one in self.measurements for answer in one.answers) / self.sequence_cycles

    @cached_property
    def proposed_at(self) -> tuple[int, ...]:
        """Cycles of a sequence that proposed a token at position 0, 1, .."""
        return _summed(one.proposed_at for one in self.measurements)

    @cached_property
    def accepted_at(self) -> tuple[int, ...]:
        """Cycles of a sequence that accepted the tokens up to position 0, 1, .."""
        return _summed(one.accepted_at for one in self.measurements)

    @property
    def proposed(self) -> float:
        """Tokens of a cycle and a sequence; of a tree its depth."""
        return sum(self.proposed_at) / self.sequence_cycles

    @property
    def draft_seconds(self) -> float:
        """Of a cycle."""
        return self.totals.draft_seconds / self.totals.cycles

    @property
    def verify_seconds(self) -> float:
        """Of a cycle."""
        return self.totals.verify_seconds / self.totals.cycles

    @property
    def other_seconds(self) -> float:
        """Of a cycle."""
        return self.totals.other_seconds / self.totals.cycles


def count(measurements: Iterable[Measurement]) -> list[Counts]:
    """Sum up by suite and configuration, in the order of the measurements."""
    found: dict[tuple[str, Configuration], list[Measurement]] = {}
    for one in measurements:
        found.setdefault((one.chunk.suite, one.configuration), []).append(one)
    sums = (Counts(suite=suite, configuration=configuration, measurements=tuple(each)) for (suite, configuration), each in found.items())
    return [one for one in sums if one.totals.cycles and one.sequence_cycles and one.totals.decode_seconds > 0]


def _summed(columns: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(*columns, fillvalue=0)))
