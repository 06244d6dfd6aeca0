"""Made-up benchmarks whose times follow a law that is known, for the tests of `predict`."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from pard2.bench.measurement import Answer, Measurement
from pard2.bench.plan import Chunk, Configuration
from pard2.bench.read_results import BenchResults
from pard2.engine.methods import METHODS
from pard2.engine.statistics import Totals

RATES = (0.8, 0.7, 0.6, 0.5, 0.5, 0.4, 0.4, 0.3)  # that a token is accepted once all before it are
Law = Callable[[float], float]


def line(first: float, each: float) -> Law:
    return lambda rows: first + each * rows


TARGET, DRAFT, OTHER = line(0.02, 0.001), line(0.004, 0.0005), line(0.001, 0.0002)


def accepted_tokens(k: int, chance: random.Random, rates: Sequence[float] = RATES) -> int:
    """Of a cycle that proposes k tokens, one after the other until one falls."""
    accepted = 0
    while accepted < k and chance.random() < rates[accepted]:
        accepted += 1
    return accepted


def simulated(
    configuration: Configuration,
    suite: str = "gsm8k",
    cycles: int = 400,
    prompts: int = 8,
    seed: int = 0,
    pace: float = 1.0,
    running: int | None = None,
    lengths: Callable[[random.Random], tuple[int, Sequence[float]]] | None = None,
) -> list[Measurement]:
    """Cycles of full batches, run one by one: a chunk for each batch of prompts.

    cycles: of each prompt
    pace: how many times longer everything takes
    running: sequences of a batch; None for all that it has room for
    lengths: proposals and rates of each cycle, where `auto` chooses; else K and `RATES`
    """
    chance, size = random.Random(seed), running or configuration.batch_size
    found = []
    for first in range(0, prompts, size):
        done = [[_cycle(configuration, chance, lengths) for _ in range(cycles)] for _ in range(size)]
        draft = verify = other = 0.0
        tokens = 0
        backlog = [1] * size
        for together in zip(*done, strict=True):
            asked = [k for k, _ in together]
            if any(asked):
                draft += sum(DRAFT(rows) for rows in _passes(METHODS[configuration.method].sequential, asked, backlog))
            backlog = [1 + accepted + (0 if k else unread) for (k, accepted), unread in zip(together, backlog, strict=True)]
            verify += TARGET(size + sum(asked))
            other += OTHER(size)
            tokens += size + sum(accepted for _, accepted in together)
        draft, verify, other = (pace * part for part in (draft, verify, other))
        totals = Totals(cycles=cycles, tokens=tokens, decode_seconds=draft + verify + other, draft_seconds=draft, verify_seconds=verify)
        flat = [pair for each in done for pair in each]
        most = max(k for k, _ in flat)
        found.append(
            Measurement(
                configuration=configuration,
                chunk=Chunk(suite, 0, size, first, size),
                totals=totals,
                answers=tuple(Answer(1 + cycles + sum(a for _, a in each), cycles, sum(a for _, a in each), True) for each in done),
                proposed_at=tuple(sum(k > i for k, _ in flat) for i in range(most)),
                accepted_at=tuple(sum(a > i for _, a in flat) for i in range(most)),
                seconds=1.0,
            )
        )
    return found


def _cycle(configuration, chance, lengths) -> tuple[int, int]:
    k, rates = (configuration.draft_tokens, RATES) if lengths is None else lengths(chance)
    return k, accepted_tokens(k, chance, rates)


def _passes(sequential: bool, asked: Sequence[int], backlog: Sequence[int]) -> list[int]:
    """Rows of the draft's passes, written down anew, so that a mistake in the engine's own count shows."""
    reading = sum(unread for k, unread in zip(asked, backlog, strict=True) if k)
    if sequential:
        return [reading] + [len([k for k in asked if k >= depth]) for depth in range(2, max(asked) + 1)]
    return [reading + sum(k - 1 for k in asked if k)]


def results_of(*runs: list[Measurement], **plan) -> BenchResults:
    """As they are read from a file; `predict` looks at the measurements alone."""
    measurements = [one for run in runs for one in run]
    suites = dict.fromkeys(one.chunk.suite for one in measurements)
    common = {"target": "target", "draft": "draft", "dtype": "float32", "device": "cpu", "suites": [{"name": name, "digest": "0"} for name in suites]}
    return BenchResults(name="r.json", meta={}, plan=common | plan, measurements=measurements, results=[])


def write_results(path: Path, *runs: list[Measurement], **plan) -> Path:
    """A file as `bench --json` writes them."""
    made = results_of(*runs, **plan)
    configurations = [one.as_dict() for one in dict.fromkeys(one.configuration for one in made.measurements)]
    meta = {"versions": {"pard2": "0"}, "date": "2026-01-01"}
    chunks = [one.as_dict() for one in made.measurements]
    path.write_text(json.dumps({"meta": meta, "plan": made.plan | {"configurations": configurations}, "results": [], "chunks": chunks}))
    return path
