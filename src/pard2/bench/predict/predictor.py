"""One prediction: tokens per second of a configuration, from acceptance and times that others showed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from pard2.bench.plan import Configuration
from pard2.bench.predict.acceptance import AcceptanceLength, chain_length, measured_length, most_measured
from pard2.bench.predict.counts import Counts, Way
from pard2.bench.predict.cycle_times import CycleSeconds, CycleTimes, Shape, UnpredictableError, fitted_times, settled, shape_of


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a configuration is expected to do.

    length: tokens of a cycle and a sequence
    seconds: of a cycle
    tokens_per_second: of the whole batch
    """

    length: AcceptanceLength
    seconds: CycleSeconds
    tokens_per_second: float


class Predictor:
    """Predicts from counts, with the times that they show themselves or with others.

        tokens/s = sequences AL(K) / (draft + verify + other)

    counts: of a result file, or of all of it but what is to be predicted
    plan: of that file
    times: of another machine or target; None for those of the counts, whose chunks also tell how many
        sequences of a batch were there on average; with others all are
    """

    def __init__(self, name: str, counts: Sequence[Counts], plan: Mapping[str, Any], times: CycleTimes | None = None) -> None:
        self.name = name
        self.counts = counts
        self._own = times is None
        self._tried = {"tried": plan["tree_top_k"]} if plan.get("tree_top_k") else {}
        self.times = fitted_times(name, counts, plan) if times is None else times

    def most(self, suite: str, way: Way, temperature: float) -> int:
        """The largest K that acceptance by position is known of."""
        return most_measured(self._chains(suite, way, temperature))

    def length(self, suite: str, configuration: Configuration) -> AcceptanceLength:
        """Tokens of a cycle where K is a number; of a tree those of the same tree, at any batch size.

        Raises `UnpredictableError` for a K beyond what was measured, and for another tree.
        """
        way = Way(configuration.draft, configuration.method)
        if configuration.tree:
            same = [
                one
                for one in self._measured(suite, way, configuration.temperature)
                if (one.configuration.tree, one.configuration.draft_tokens) == (configuration.tree, configuration.draft_tokens)
            ]
            if not same:
                raise UnpredictableError(f"trees of {configuration.tree} nodes; {self.name} has none of {way.method} on {suite}")
            return measured_length(same)
        if configuration.draft_tokens == 0:
            return AcceptanceLength(value=1.0)
        if configuration.draft_tokens == "auto":
            raise UnpredictableError("K auto, whose choice is not known; name numbers")
        chains = self._chains(suite, way, configuration.temperature)
        found = chain_length(chains, int(configuration.draft_tokens))
        if found is None:
            most = most_measured(chains)
            raise UnpredictableError(f"K {configuration.draft_tokens}; {self.name} tells of {way.method} on {suite} up to K {most}")
        return found

    def predict(self, suite: str, configuration: Configuration, length: AcceptanceLength | None = None) -> Speed:
        """The speed where K and tree are numbers; of a tree whose depth `auto` chose, see `settled`.

        length: where it is known from elsewhere

        Raises `UnpredictableError` as `length` does, and for passes too far from those measured.
        """
        length = length or self.length(suite, configuration)
        if configuration.draft_tokens == "auto":  # the depth of a tree
            configuration = replace(configuration, draft_tokens=self._depth(suite, configuration))
        shape = Shape.of(configuration, length.value, length.proposed, self._occupancy(suite, configuration), **self._tried)
        return _speed(length, shape, self.times.cycle(shape, suite, configuration.batch_size))

    def repeat(self, one: Counts) -> Speed:
        """The speed of what was measured, with its own acceptance.

        Where `auto` chose what each cycle did, rows and the draft's seconds are its own, too; the target's
        pass alone is predicted. Raises `UnpredictableError` for passes too far from those measured.
        """
        length = measured_length([one])
        configuration = settled(one)
        if configuration is not None:
            return self.predict(one.suite, configuration, replace(length, proposed=one.proposed))
        if one.configuration.tree == "auto":
            raise UnpredictableError("trees whose size `auto` chose")
        shape = shape_of(one)
        return _speed(length, shape, replace(self.times.cycle(shape, one.suite, one.configuration.batch_size), draft=one.draft_seconds))

    def _depth(self, suite: str, configuration: Configuration) -> int:
        for one in self._measured(suite, Way(configuration.draft, configuration.method), configuration.temperature):
            found = settled(one) if one.configuration.tree == configuration.tree else None
            if found is not None and isinstance(found.draft_tokens, int):
                return found.draft_tokens
        raise UnpredictableError("the depth of trees that `auto` left out in some cycles; measure them with a number")

    def _measured(self, suite: str, way: Way, temperature: float) -> list[Counts]:
        return [one for one in self.counts if (one.suite, one.way, one.configuration.temperature) == (suite, way, temperature)]

    def _chains(self, suite: str, way: Way, temperature: float) -> list[Counts]:
        return [one for one in self._measured(suite, way, temperature) if not one.configuration.tree]

    def _occupancy(self, suite: str, configuration: Configuration) -> float:
        """Sequences of a cycle over the batch size: of the configuration, else of its method, else of any."""
        if not self._own:
            return 1.0
        alike = [one for one in self.counts if one.suite == suite and one.configuration.batch_size == configuration.batch_size]
        way = Way(configuration.draft, configuration.method)
        choices = (
            [one for one in alike if one.configuration == configuration],
            [one for one in alike if one.way == way and one.configuration.tree == configuration.tree],
            alike,
        )
        nearest = next(filter(None, choices), [])
        return fmean(one.sequences / configuration.batch_size for one in nearest) if nearest else 1.0


def _speed(length: AcceptanceLength, shape: Shape, seconds: CycleSeconds) -> Speed:
    return Speed(length=length, seconds=seconds, tokens_per_second=shape.sequences * length.value / seconds.all)
