"""Seconds of a cycle and of its parts, fitted to what a result file holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from pard2.bench.plan import Configuration
from pard2.bench.predict.counts import Counts, Way
from pard2.bench.predict.time_curve import Passes, TimeCurve
from pard2.engine.draft_length.plain import draft_passes
from pard2.engine.methods import METHODS
from pard2.errors import Pard2Error

_NEARLY_ALL = 0.95
_TRIED = 10  # tokens behind each node of an EAGLE-3 draft's tree where nothing is said


class UnpredictableError(Pard2Error):
    """What was measured says nothing about this."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The passes of a cycle.

    sequences: that take part, on average
    verify_rows: of the target's pass
    draft_passes: rows of each pass of the draft; none for methods without one
    """

    way: Way
    sequences: float
    verify_rows: float
    draft_passes: Sequence[float] = ()

    @classmethod
    def of(cls, configuration: Configuration, length: float, proposed: float, occupancy: float, tried: int = _TRIED) -> "Shape":
        """The shape where K is a number.

        length: tokens that a cycle emits, which the draft reads in the next one
        proposed: tokens a sequence and cycle, where no draft proposes them (`ngram`); else K counts
        occupancy: sequences of a cycle over the batch size
        tried: tokens behind each node of an EAGLE-3 draft's tree
        """
        method, many, k = METHODS[configuration.method], configuration.batch_size, configuration.draft_tokens
        way = Way(configuration.draft, configuration.method)
        sequences = occupancy * many
        if not method.proposes:
            return cls(way=way, sequences=sequences, verify_rows=sequences)
        if not method.needs:
            return cls(way=way, sequences=sequences, verify_rows=sequences * (1 + proposed))
        assert isinstance(k, int) and isinstance(configuration.tree, int), "lengths that auto chose have no shape"
        passes = draft_passes([k] * many, [length] * many, method.sequential)
        if configuration.tree and method.sequential:
            # Each further pass runs over the root and all nodes expanded so far (`drafters.eagle3`).
            passes = [passes[0], *(many * (1 + tried * depth) for depth in range(1, k))]
        rows = sequences * (1 + (configuration.tree or k))
        return cls(way=way, sequences=sequences, verify_rows=rows, draft_passes=[occupancy * one for one in passes])


@dataclass(frozen=True, kw_only=True)
class CycleSeconds:
    """draft, verify, other: seconds of a cycle in the draft, in the target, and outside of both."""

    draft: float
    verify: float
    other: float

    @property
    def all(self) -> float:
        return self.draft + self.verify + self.other


@dataclass(frozen=True, kw_only=True)
class CycleTimes:
    """Seconds of a cycle's parts.

    name: of the file that they are from
    target, drafts: of their passes; the drafts' by the way that uses them, None for all that are not named
    others: seconds outside the models, by the way; rows are sequences
    paces: how many times longer all took in a suite and batch size; 1 in others
    """

    name: str
    target: TimeCurve
    drafts: Mapping[Way | None, TimeCurve]
    others: Mapping[Way | None, TimeCurve]
    paces: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def cycle(self, shape: Shape, suite: str, batch_size: int) -> CycleSeconds:
        """Raises `UnpredictableError` for passes too far from what was measured."""
        if shape.verify_rows < self.target.least * (1 - 1e-9):
            raise UnpredictableError(f"a pass of {shape.verify_rows:.0f} rows of the target; {self.name} has no times below {self.target.least:.0f}")
        draft = _of(self.drafts, shape.way)
        if shape.draft_passes and draft is None:
            raise UnpredictableError(f"passes of the draft of {shape.way.method}; {self.name} has no times of them")
        for curve, passes, model in ((self.target, [shape.verify_rows], "target"), (draft, shape.draft_passes, "draft")):
            for rows in passes if curve is not None else ():
                try:
                    curve.check(rows, shape.sequences)
                except ValueError as error:
                    raise UnpredictableError(f"larger passes of the {model} than {self.name} has times of: {error}") from None
        other = _of(self.others, shape.way)
        known = [pace for (name, _), pace in self.paces.items() if name == suite] or [1.0]
        pace = self.paces.get((suite, batch_size), fmean(known))
        return CycleSeconds(
            draft=0.0 if draft is None else pace * sum(draft.seconds(rows, shape.sequences) for rows in shape.draft_passes),
            verify=pace * self.target.seconds(shape.verify_rows, shape.sequences),
            other=0.0 if other is None else pace * other.seconds(shape.sequences, 1),
        )


def fitted_times(name: str, counts: Sequence[Counts], plan: Mapping[str, Any]) -> CycleTimes:
    """The times that these counts show, each mean of a configuration and suite a point.

    Suites are measured one after the other, and a machine may change its speed between them. So times are
    divided by the pace of plain decoding in the same suite and batch size.
    """
    paces = _paces(counts)
    tried = plan.get("tree_top_k") or _TRIED
    target: list[Passes] = []
    drafts: dict[Way | None, list[Passes]] = {}
    others: dict[Way | None, list[Passes]] = {}
    for one in counts:
        pace = paces.get((one.suite, one.configuration.batch_size), 1.0)
        weight, sequences = one.totals.cycles, one.sequences
        outside = one.other_seconds
        if one.configuration.tree != "auto":  # how many nodes it took is not known
            target.append(Passes(shape_of(one, tried).verify_rows, sequences, one.verify_seconds / pace, weight))
        if not METHODS[one.configuration.method].needs:
            outside += one.draft_seconds
        else:
            drafts.setdefault(one.way, []).extend(_draft_passes(one, pace, tried))
        others.setdefault(one.way, []).append(Passes(sequences, 1, outside / pace, weight))
    return CycleTimes(
        name=name,
        target=TimeCurve(target),
        drafts={way: TimeCurve(points) for way, points in drafts.items() if points},
        others={way: TimeCurve(points) for way, points in others.items()},
        paces=paces,
    )


def settled(one: Counts) -> Configuration | None:
    """The configuration with numbers for K and tree; None where `auto` chose what each cycle did.

    A tree whose depth was left to `auto` counts as of its mean depth, if nearly all cycles proposed one.
    """
    configuration = one.configuration
    if configuration.tree == "auto" or configuration.draft_tokens != "auto":
        return None if configuration.tree == "auto" else configuration
    if not configuration.tree or one.proposed_at[:1] < (_NEARLY_ALL * one.sequence_cycles,):
        return None
    return replace(configuration, draft_tokens=max(1, round(one.proposed)))


def shape_of(one: Counts, tried: int = _TRIED) -> Shape:
    """The shape of cycles that were measured; the draft's passes of those that `auto` chose stay unsaid."""
    configuration = settled(one)
    if configuration is not None:
        return Shape.of(configuration, one.acceptance_length, one.proposed, one.sequences / configuration.batch_size, tried)
    tree = one.configuration.tree
    proposed = one.proposed if not isinstance(tree, int) or not tree else tree * one.proposed_at[0] / one.sequence_cycles
    return Shape(way=one.way, sequences=one.sequences, verify_rows=one.sequences * (1 + proposed))


def _draft_passes(one: Counts, pace: float, tried: int) -> list[Passes]:
    """The draft's mean pass, where it is known how many there were."""
    rows = shape_of(one, tried).draft_passes
    if rows:
        passes = float(len(rows))
    elif one.configuration.batch_size == 1 and not METHODS[one.configuration.method].sequential and any(one.proposed_at[:1]):
        # It ran in the cycles that proposed something; in the end it has read all tokens, each once.
        passes = one.proposed_at[0] / one.totals.cycles
        rows = [(one.totals.tokens + sum(one.proposed_at[1:])) / one.totals.cycles]
    else:
        return []
    return [Passes(sum(rows) / passes, one.sequences, one.draft_seconds / passes / pace, one.totals.cycles * passes, max(rows))]


def _paces(counts: Sequence[Counts]) -> dict[tuple[str, int], float]:
    """How long plain decoding's pass took in each suite and batch size, over the mean of all suites."""
    plain = {(one.suite, one.configuration.batch_size): one for one in counts if one.is_plain}
    usual = {size: fmean(one.verify_seconds for (_, other), one in plain.items() if other == size) for _, size in plain}
    return {(suite, size): one.verify_seconds / usual[size] for (suite, size), one in plain.items()}


def _of(curves: Mapping[Way | None, TimeCurve], way: Way) -> TimeCurve | None:
    return curves.get(way, curves.get(None))
