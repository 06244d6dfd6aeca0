"""Simulated machines and texts, whose best draft length is known."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pard2.engine.draft_length.adaptive import AdaptiveDraftLength, MeasuredCycle
from pard2.engine.draft_length.pass_times import Array, PassTimes
from pard2.engine.draft_length.plain import Cost

MAXIMUM = 16


def steep(rows: float) -> float:
    """Like a CPU's target: past a few rows each costs much."""
    return 0.025 + 0.0006 * min(rows, 6) + 0.004 * max(rows - 6, 0)


def flat(rows: float) -> float:
    """Like a GPU's target: rows are free to 64."""
    return 0.012 + 0.0001 * max(rows - 64, 0)


def small_steep(rows: float) -> float:
    return 0.011 + 0.0001 * rows


def small_flat(rows: float) -> float:
    return 0.003


class KnownTimes(PassTimes):
    """Times that need not be learnt: lines between given points (rows, seconds)."""

    def __init__(self, points: Mapping[int, float]) -> None:
        super().__init__()
        self._points = list(points), list(points.values())

    @property
    def known(self) -> bool:
        return True

    def curve(self, rows: ArrayLike) -> Array:
        return np.interp(rows, *self._points)


CPU, GPU = (steep, small_steep), (flat, small_flat)
FALLING = [0.9, 0.8, 0.6, 0.3] + [0.1] * 12


def even(rate: float) -> list[float]:
    return [rate] * MAXIMUM


def expected(rates: Sequence[float], k: int) -> float:
    """Tokens a cycle, the target's own included."""
    return 1 + sum(itertools.accumulate(rates[:k], lambda a, b: a * b))


def fixed_speed(load: Sequence[Sequence[float]], k: int, machine: tuple[Cost, Cost]) -> float:
    """Tokens per second with the same k for all, in the long run."""
    target, draft = machine
    tokens = sum(expected(rates, k) for rates in load)
    return tokens / (target(len(load) * (1 + k)) + (draft(tokens + len(load) * (k - 1)) if k else 0))


def best_fixed(load: Sequence[Sequence[float]], machine: tuple[Cost, Cost]) -> float:
    return max(fixed_speed(load, k, machine) for k in range(MAXIMUM + 1))


Disturbance = Callable[[float, random.Random], float]


def disturbed(seconds: float, world: random.Random) -> float:
    return seconds * world.lognormvariate(0, 0.1) * (10 if world.random() < 0.01 else 1)


def busy(seconds: float, world: random.Random) -> float:
    """Every third pass is held up by other programs, for up to ten times its length."""
    return seconds * world.lognormvariate(0, 0.15) * (world.uniform(1, 10) if world.random() < 0.35 else 1)


def live(
    lengths: AdaptiveDraftLength,
    load: Sequence[Sequence[float]],
    machine: tuple[Cost, Cost],
    cycles: int,
    seed: int = 0,
    disturbed: Disturbance = disturbed,
) -> tuple[float, list[list[int]]]:
    """Decode sequences that accept by the rates of `load` and last 200 cycles each.

    Returns tokens per second, and all choices. `lengths` sees disturbed times and drawn acceptances; speed
    is that of expected tokens and undisturbed times.
    """
    world = random.Random(seed)
    target, draft = machine
    batch = len(load)
    acceptances = [lengths.acceptance() for _ in load]
    backlog = [1] * batch
    tokens = seconds = 0.0
    choices = []
    for cycle in range(cycles):
        for i in range(batch):
            if cycle % 200 == 200 * i // batch:
                acceptances[i], backlog[i] = lengths.acceptance(), 1
        ks = lengths.choose(acceptances, [MAXIMUM] * batch, backlog)
        accepted = []
        for rates, k in zip(load, ks, strict=True):
            accepted.append(next((j for j in range(k) if world.random() >= rates[j]), k))
        draft_rows: list[int] = []
        if any(ks):
            draft_rows = [sum(rows for k, rows in zip(ks, backlog, strict=True) if k)]
            further = [sum(k > depth for k in ks) for depth in range(1, max(ks))]
            draft_rows = draft_rows + further if lengths.sequential else [draft_rows[0] + sum(further)]
        draft_seconds, verify_seconds = sum(map(draft, draft_rows)), target(batch + sum(ks))
        lengths.observe(
            MeasuredCycle(
                proposed=ks,
                accepted=accepted,
                draft_rows=draft_rows,
                draft_seconds=disturbed(draft_seconds, world),
                verify_rows=batch + sum(ks),
                verify_seconds=disturbed(verify_seconds, world),
            )
        )
        for i, acceptance in enumerate(acceptances):
            acceptance.observe(ks[i], accepted[i])
            backlog[i] = accepted[i] + 1 if ks[i] else backlog[i] + 1
        tokens += sum(expected(rates, k) for rates, k in zip(load, ks, strict=True))
        seconds += draft_seconds + verify_seconds
        choices.append(ks)
    return tokens / seconds, choices
