"""Two result files: which figures differ by more than chance, configuration by configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pard2.bench.entries import differences, other_prompts, unfinished
from pard2.bench.measurement import Measurement
from pard2.bench.plan import Configuration
from pard2.bench.read_results import BenchResults
from pard2.bench.summary import acceptance_length, accepted_and_cycles, of_sums, rounded, speedup, tokens_and_seconds
from pard2.engine.methods import PLAIN
from pard2.errors import Pard2Error
from pard2.intervals import Array, bootstrap_difference

Verdict = Literal["higher", "lower", "not told apart"]
Key = tuple[str, Configuration]  # suite, configuration


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of one configuration in two files.

    figure: "acceptance_length" or "speedup"
    a, b: of what is compared: of the same prompts or chunks where the files share them
    difference: b - a; interval: its 95 % interval, None where there is too little to tell
    paired: whether the same prompts or chunks were set against each other
    items: prompts or chunks, of the file that has fewer
    """

    suite: str
    configuration: Configuration
    figure: str
    a: float
    b: float
    difference: float
    interval: list[float] | None
    paired: bool
    items: int

    @property
    def verdict(self) -> Verdict:
        """What b is, beside a."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not told apart"
        return "higher" if self.difference > 0 else "lower"

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values.pop("configuration")
        return {"suite": values.pop("suite"), **self.configuration.as_dict(), **values, "verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """notes: what keeps figures from being compared, or should be known with them. only_a, only_b: what the
    other file lacks.
    """

    differences: list[Difference]
    only_a: list[Key]
    only_b: list[Key]
    notes: list[str]


def compare(a: BenchResults, b: BenchResults, any_machine: bool = False) -> Comparison:
    """Acceptance lengths and speed-ups of what both files measured.

    any_machine: compare the speed-ups of different machines, too. A speed-up is no property of a draft alone:
        it is the machine's price of rows and passes as well.

    Raises `Pard2Error` for files that have no configuration of a method in common.
    """
    ours, theirs = _by_key(a), _by_key(b)
    common = [key for key in ours if key in theirs]
    compared = [key for key in common if key[1].method != PLAIN]
    if not compared:
        raise Pard2Error(f"{a.name} and {b.name} have no suite and method in common under the same batch size, K, tree and temperature")
    other = other_prompts([a, b])
    speeds = any_machine or not _other_speed(a, b)
    found = []
    for suite, one in compared:
        base, same = (suite, one.base), suite not in other
        lengths = [accepted_and_cycles(file[suite, one]) for file in (ours, theirs)]
        found.append(_difference(suite, one, "acceptance_length", acceptance_length, lengths, same))
        if speeds:
            chunks = [tokens_and_seconds(file[suite, one], file[base]) for file in (ours, theirs)]
            found.append(_difference(suite, one, "speedup", speedup, chunks, same))
    notes = [*differences([a, b]), *filter(None, map(unfinished, (a, b)))]
    notes += [f"other prompts in {suite}: nothing is paired there, so only large differences are told apart" for suite in other]
    notes += [] if speeds else [f"speed-ups are not compared: other {_other_speed(a, b)}; --any-machine does it all the same"]
    told = [one for one in found if one is not None]
    if len(told) >= 10:
        notes.append(f"of {len(told)} figures that do not differ, about {0.05 * len(told):.0f} would be told apart by chance")
    return Comparison(
        differences=told, only_a=[key for key in ours if key not in theirs], only_b=[key for key in theirs if key not in ours], notes=notes
    )


def _by_key(file: BenchResults) -> dict[Key, list[Measurement]]:
    found: dict[Key, list[Measurement]] = {}
    for one in file.measurements:
        found.setdefault((one.chunk.suite, one.configuration), []).append(one)
    return found


def _other_speed(a: BenchResults, b: BenchResults) -> str:
    """What makes speed another thing in these files; empty where nothing does."""
    if a.meta["hardware"] != b.meta["hardware"]:
        return "machine"
    known = [what for what in ("target", "device", "dtype", "weights") if what in a.plan and what in b.plan]  # older files say less
    return next((what for what in known if a.plan[what] != b.plan[what]), "")


def _difference(
    suite: str,
    configuration: Configuration,
    figure: str,
    statistic: Callable[[Array], Array],
    items: Sequence[Mapping[Any, tuple[float, ...]]],
    same_prompts: bool,
) -> Difference | None:
    """None where one of the files has nothing.

    items: what the statistic takes the sums of, by prompt or chunk, of each file
    """
    shared = [key for key in items[0] if key in items[1]] if same_prompts else []
    first, second = ([one[key] for key in shared] if shared else list(one.values()) for one in items)
    a, b = of_sums(first, statistic), of_sums(second, statistic)
    if a is None or b is None:
        return None
    return Difference(
        suite=suite,
        configuration=configuration,
        figure=figure,
        a=rounded(a),
        b=rounded(b),
        difference=rounded(b - a),
        interval=rounded(bootstrap_difference(first, second, statistic, paired=bool(shared))),
        paired=bool(shared),
        items=min(len(first), len(second)),
    )
