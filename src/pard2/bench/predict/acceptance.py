"""Tokens that a cycle emits, from acceptance by position.

A draft that proposes K' tokens proposes the first K < K' of them as it would have proposed K alone: the
tokens of a chain do not depend on how far it goes (METHOD: section 5). So a run with K' tells of every
shorter K.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import Literal

from pard2.bench.predict.counts import Counts
from pard2.engine.methods import METHODS
from pard2.intervals import bootstrap

_FEWEST = 20  # cycles that proposed a token at a position, for it to count as measured


@dataclass(frozen=True, kw_only=True)
class AcceptanceLength:
    """Tokens of a cycle and a sequence, the target's own included.

    interval: 95 %, by bootstrap over chunks of prompts; None with one chunk
    proposed: tokens that a cycle proposed for it; 0 where nobody needs to know
    at_least: only where the lengths were chosen by `auto`: the least that it can be
    """

    value: float
    proposed: float = 0.0
    interval: list[float] | None = None
    at_least: float | None = None


def most_measured(chains: Sequence[Counts]) -> int:
    """The largest K that these runs tell of; 0 for none."""
    return max([_positions(_told(chains)), *(_positions([one]) for one in _fixed(chains))])


def chain_length(chains: Sequence[Counts], k: int) -> AcceptanceLength | None:
    """What a cycle of k >= 1 proposals emits; None where too few cycles proposed so many.

    chains: of one method, draft, suite and temperature, at any batch size and K

        AL(K) = 1 + c_1 + .. + c_K          c_i: the chance that the tokens up to position i are all accepted

    c_i is counted where K was fixed, in the runs of the least K that is no smaller: accepted up to i over all
    cycles, also those at the end of an answer, which have no room for K. Where only `auto` proposed so many,
    it is counted in the cycles that did; see `_chosen`.
    """
    fixed = [one for one in _fixed(chains) if _positions([one]) >= k]
    if fixed:
        nearest = min(int(one.configuration.draft_tokens) for one in fixed)
        source = [one for one in fixed if one.configuration.draft_tokens == nearest]
        cycles = sum(one.sequence_cycles for one in source)
        accepted = sum(sum(one.accepted_at[:k]) for one in source)
        proposed = sum(sum(one.proposed_at[:k]) for one in source)
        return AcceptanceLength(value=1 + accepted / cycles, proposed=proposed / cycles, interval=_interval(source, k))
    source = _told(chains)
    return _chosen(source, k) if _positions(source) >= k else None


def measured_length(source: Sequence[Counts]) -> AcceptanceLength:
    """What cycles emitted as they were: of trees, and of lengths that `auto` chose.

    source: of one configuration but for the batch size
    """
    cycles = sum(one.sequence_cycles for one in source)
    accepted = sum(one.sequence_cycles * (one.acceptance_length - 1) for one in source)
    return AcceptanceLength(value=1 + accepted / cycles, interval=_interval(source, None))


def _chosen(source: Sequence[Counts], k: int) -> AcceptanceLength:
    """From cycles whose lengths `auto` chose, with those of fixed ones.

    It proposes more where it expects more to be accepted, so the share accepted at position i, of the cycles
    that proposed a token there, is that of the easier cycles: the value is too high for all cycles together.
    Over all cycles, as if the others had accepted nothing, it is too low. The truth lies between.
    """
    proposed, accepted = (_sums(source, name)[:k] for name in ("proposed_at", "accepted_at"))
    cycles = sum(one.sequence_cycles for one in source)
    # A later position that few, easy cycles reached may show a higher share than the one before; none has.
    chances = accumulate((a / p for a, p in zip(accepted, proposed, strict=True)), min)
    return AcceptanceLength(value=1 + sum(chances), at_least=1 + sum(accepted) / cycles)


def _fixed(chains: Sequence[Counts]) -> list[Counts]:
    return [one for one in chains if one.configuration.draft_tokens != "auto"]


def _told(chains: Sequence[Counts]) -> list[Counts]:
    """Without those of a method that has no draft where `auto` chose: whether there was nothing to copy, or
    it did not want to, is not known.
    """
    return [one for one in chains if one.configuration.draft_tokens != "auto" or METHODS[one.configuration.method].needs]


def _positions(source: Sequence[Counts]) -> int:
    """Positions that were proposed often enough."""
    enough = min(_FEWEST, sum(one.sequence_cycles for one in source))
    return sum(proposed >= enough for proposed in _sums(source, "proposed_at"))


def _sums(source: Sequence[Counts], name: Literal["proposed_at", "accepted_at"]) -> list[int]:
    """By position, of all runs together."""
    return [sum(column) for column in zip_longest(*(getattr(one, name) for one in source), fillvalue=0)]


def _interval(source: Sequence[Counts], k: int | None) -> list[float] | None:
    """Over chunks of prompts, by the batch size with the most; the repeats of a chunk belong together."""
    chunks: dict[int, dict[int, list[float]]] = defaultdict(dict)
    for one in source:
        sums = chunks[one.configuration.batch_size]
        for measured in one.measurements:
            pair = sums.setdefault(measured.chunk.first, [0.0, 0.0])
            pair[0] += sum(measured.accepted_at[:k]) if k else sum(answer.accepted for answer in measured.answers)
            pair[1] += sum(answer.cycles for answer in measured.answers)
    items = [pair for pair in max(chunks.values(), key=len).values() if pair[1]]
    return bootstrap(items, lambda sums: 1 + sums[..., 0] / sums[..., 1])
