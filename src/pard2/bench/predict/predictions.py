"""All predictions that are asked for, beside what was measured, and how far off the model is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal, NamedTuple

from pard2.bench.plan import Configuration
from pard2.bench.predict.counts import Counts, Way, count
from pard2.bench.predict.cycle_times import CycleTimes, UnpredictableError
from pard2.bench.predict.predictor import Predictor, Speed
from pard2.bench.read_results import BenchResults
from pard2.engine.methods import PLAIN
from pard2.errors import Pard2Error

_WAY_OUT = "; ask for less, or measure more"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be predicted; None for all that the file holds.

    draft_tokens: numbers of proposals; None for every number that was measured, and `auto` as it was
    trees: sizes of trees, 0 for chains
    batch_sizes: None for those measured, and for 1 with times of another machine
    """

    methods: Sequence[str] | None = None
    drafts: Sequence[str] | None = None
    suites: Sequence[str] | None = None
    draft_tokens: Sequence[int] | None = None
    trees: Sequence[int] | None = None
    batch_sizes: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a configuration.

    without: tokens per second as predicted from all the others; None where they do not tell
    own_acceptance: whether its own acceptance went into that, since no other K tells of it
    """

    tokens_per_second: float
    without: float | None = None
    own_acceptance: bool = False

    @property
    def error(self) -> float | None:
        """Of the prediction made without it, as a share."""
        return None if self.without is None else self.without / self.tokens_per_second - 1


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One line of the answer.

    speedup: over plain decoding at the same batch size, as predicted
    best: whether none of its batch size is faster, among numbers of proposals, plain decoding and trees
    """

    suite: str
    configuration: Configuration
    speed: Speed
    speedup: float
    measured: Measured | None = None
    best: bool = False

    def as_dict(self) -> dict[str, Any]:
        one, speed, length = self.configuration, self.speed, self.speed.length
        measured = self.measured
        return {"suite": self.suite} | one.as_dict() | {
            "acceptance_length": length.value,
            "acceptance_length_interval": length.interval,
            "acceptance_length_at_least": length.at_least,
            "draft_seconds": speed.seconds.draft,
            "verify_seconds": speed.seconds.verify,
            "other_seconds": speed.seconds.other,
            "tokens_per_second": speed.tokens_per_second,
            "speedup": self.speedup,
            "best": self.best,
            "measured_tokens_per_second": None if measured is None else measured.tokens_per_second,
            "tokens_per_second_without": None if measured is None else measured.without,
            "error_without": None if measured is None else measured.error,
        }  # fmt: skip


class Group(NamedTuple):
    """One way to decode on one suite; predictions of a group are compared with one another."""

    suite: str
    way: Way
    temperature: float


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """How far off predictions are that were made without what they predict.

    errors: of each configuration, as shares
    own_acceptance: how many of them used its own acceptance, and tell of the times alone
    impossible: configurations that the others tell nothing of
    """

    errors: Sequence[float]
    own_acceptance: int
    impossible: int

    def as_dict(self) -> dict[str, Any]:
        sizes = [abs(error) for error in self.errors]
        found = {"median": median(sizes), "largest": max(sizes)} if sizes else {"median": None, "largest": None}
        return {"configurations": len(sizes), **found, "own_acceptance": self.own_acceptance, "impossible": self.impossible}


class Predictions:
    """All that is asked for.

    groups: the predictions by suite, method and temperature, in the order of the file
    skipped: of a group, the first at each batch size that is too far from what was measured, and why
    left_out: None with times of another machine, which nothing was measured with

    Raises `Pard2Error` for what the file does not hold, and for a K or batch size too far from it.
    """

    def __init__(self, results: BenchResults, asked: Asked, times: CycleTimes | None = None) -> None:
        self.results = results
        self.times = times
        if (results.plan.get("ngrams") or {}).get("ngram_first") is not None:
            raise Pard2Error(f"{results.name} was measured with `--ngram-first`, so its acceptance is not the draft's alone; measure without")
        self._counts = count(results.measurements)
        self._predictor = Predictor(results.name, self._counts, results.plan, times)
        self._measured = {} if times else {(one.suite, one.configuration): self._leave_out(one) for one in self._counts if not one.is_plain}
        self.skipped: dict[Group, list[str]] = {}
        self.groups = {group: list(self._predictions(group, asked)) for group in self._groups(asked)}
        self.left_out = None if times else self._sum_up([self._measured[key] for key in self._measured if _group_of(*key) in self.groups])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "results": self.results.name,
            "times": None if self.times is None else self.times.name,
            "predictions": [one.as_dict() for group in self.groups.values() for one in group],
            "left_out": None if self.left_out is None else self.left_out.as_dict(),
        }

    def _groups(self, asked: Asked) -> list[Group]:
        groups = list(dict.fromkeys(_group_of(one.suite, one.configuration) for one in self._counts if not one.is_plain))
        if not groups:
            raise Pard2Error(f"{self.results.name} holds plain decoding alone; measure a method that proposes something")
        for name, wanted, of in (
            ("suite", asked.suites, lambda group: group.suite),
            ("method", asked.methods, lambda group: group.way.method),
            ("draft", asked.drafts, lambda group: group.way.draft),
        ):
            held = [one for one in dict.fromkeys(map(of, groups)) if one is not None]
            for one in wanted or ():
                if one not in held:
                    there = f"it holds {', '.join(held)}" if held else "its only draft has no name there; leave it away"
                    raise Pard2Error(f"`{name}` {one!r} is not in {self.results.name}; {there}")
            groups = [group for group in groups if wanted is None or of(group) in wanted]
        if not groups:
            raise Pard2Error(f"{self.results.name} holds no such method of such a draft on such a suite; leave one of them away")
        return groups

    def _predictions(self, group: Group, asked: Asked) -> Iterator[Prediction]:
        sizes = asked.batch_sizes or ([1] if self.times else sorted({one.configuration.batch_size for one in self._counts}))
        wanted = self._wanted(group, asked)
        strict = asked.draft_tokens is not None
        for size in sizes:
            plain = Configuration(method=PLAIN, batch_size=size, draft_tokens=0, temperature=group.temperature)
            base = self._checked(group, plain)
            found = [Prediction(suite=group.suite, configuration=plain, speed=base, speedup=1.0)]
            refused: UnpredictableError | None = None
            for configuration in (replace(one, batch_size=size) for one in wanted):
                try:
                    speed = self._speed(group, configuration)
                except UnpredictableError as error:
                    if strict:
                        raise
                    refused = refused or error
                    continue
                if speed is not None:
                    measured = self._measured.get((group.suite, configuration))
                    ratio = speed.tokens_per_second / base.tokens_per_second
                    found.append(Prediction(suite=group.suite, configuration=configuration, speed=speed, speedup=ratio, measured=measured))
            if refused is not None:
                if len(found) == 1 and asked.batch_sizes is not None:
                    raise refused
                self.skipped.setdefault(group, []).append(str(refused).removesuffix(_WAY_OUT))
            fastest = max((one for one in found if "auto" not in _numbers(one.configuration)), key=lambda one: one.speed.tokens_per_second)
            yield from (replace(one, best=one is fastest) for one in found)

    def _wanted(self, group: Group, asked: Asked) -> list[Configuration]:
        """Configurations of a group, of batch size 1."""
        held = [one.configuration for one in self._counts if _group_of(one.suite, one.configuration) == group]
        trees = list(dict.fromkeys(one.tree for one in held if one.tree))
        for tree in asked.trees or ():
            if tree and tree not in trees:
                there = f"trees of {', '.join(map(str, trees))}" if trees else "no trees"
                raise Pard2Error(f"`tree` {tree}: {self.results.name} holds {there} of {group.way.method} on {group.suite}; measure it")
        chosen: Sequence[int | Literal["auto"]] = [0, *trees] if asked.trees is None else asked.trees
        ks: list[int | Literal["auto"]] = []
        most = self._predictor.most(*group)
        if 0 in chosen:
            for k in asked.draft_tokens or ():
                if k > most:
                    raise Pard2Error(
                        f"`draft_tokens` {k}: {self.results.name} tells of {group.way.method} on {group.suite} up to K {most}; "
                        "ask for less, or measure with more"
                    )
            ks = list(asked.draft_tokens or range(1, most + 1))
            if asked.draft_tokens is None and not self.times:
                ks += ["auto"] * any((one.draft_tokens, one.tree) == ("auto", 0) for one in held)
        one = Configuration(method=group.way.method, batch_size=1, draft_tokens=0, temperature=group.temperature, draft=group.way.draft)
        chains = [replace(one, draft_tokens=k) for k in ks]
        grown = [replace(each, batch_size=1) for each in held if each.tree and each.tree in chosen]
        if asked.draft_tokens is not None:
            grown = [each for each in grown if each.draft_tokens in asked.draft_tokens]
        return [*chains, *dict.fromkeys(grown)]

    def _speed(self, group: Group, configuration: Configuration) -> Speed | None:
        """None where `auto` chose the lengths, or the size of trees, and it was not measured like that."""
        if configuration.tree == "auto" or (configuration.draft_tokens == "auto" and not configuration.tree):
            own = [one for one in self._counts if (one.suite, one.configuration) == (group.suite, configuration)]
            return None if not own or configuration.tree or self.times else self._predictor.repeat(own[0])
        return self._checked(group, configuration)

    def _checked(self, group: Group, configuration: Configuration) -> Speed:
        """Raises `UnpredictableError` that names what is predicted."""
        try:
            return self._predictor.predict(group.suite, configuration)
        except UnpredictableError as error:
            shape = f"a tree of {configuration.tree}" if configuration.tree else f"K {configuration.draft_tokens}"
            what = f"{configuration.method} on {group.suite}, batch {configuration.batch_size}, {shape}"
            raise UnpredictableError(f"{what}, needs {error}{_WAY_OUT}") from None

    def _leave_out(self, one: Counts) -> Measured:
        """Predict it from everything else: acceptance from other K, times from other configurations."""
        others = [each for each in self._counts if each is not one]
        same = (one.suite, one.way, one.configuration.temperature, one.configuration.draft_tokens, one.configuration.tree)
        strangers = [
            each for each in others
            if (each.suite, each.way, each.configuration.temperature, each.configuration.draft_tokens, each.configuration.tree) != same
        ]  # fmt: skip
        speed = one.totals.tokens_per_second
        predictor = Predictor(self.results.name, others, self.results.plan)
        own = False
        try:
            try:
                if one.configuration.tree:
                    raise UnpredictableError
                length = Predictor(self.results.name, strangers, self.results.plan, predictor.times).length(one.suite, one.configuration)
                found = predictor.predict(one.suite, one.configuration, length)
            except UnpredictableError:
                own, found = True, predictor.repeat(one)
        except UnpredictableError:
            return Measured(tokens_per_second=speed)
        return Measured(tokens_per_second=speed, without=found.tokens_per_second, own_acceptance=own)

    @staticmethod
    def _sum_up(measured: Sequence[Measured]) -> LeftOut:
        errors = [one.error for one in measured if one.error is not None]
        own = sum(one.own_acceptance for one in measured if one.error is not None)
        return LeftOut(errors=errors, own_acceptance=own, impossible=len(measured) - len(errors))


def _group_of(suite: str, one: Configuration) -> Group:
    return Group(suite, Way(one.draft, one.method), one.temperature)


def _numbers(one: Configuration) -> tuple[Any, Any]:
    """What must not be `auto` in the best choice; the depth of a tree may be."""
    return (0 if one.tree else one.draft_tokens), one.tree
