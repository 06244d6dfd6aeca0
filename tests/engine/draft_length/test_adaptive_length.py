"""The draft lengths of a batch, in simulated worlds whose best answer is known."""

import itertools
import random
import statistics

import pytest
from decoding_worlds import CPU, FALLING, GPU, MAXIMUM, best_fixed, busy, even, expected, fixed_speed, flat, live

from pard2.engine.draft_length.adaptive import AdaptiveDraftLength, MeasuredCycle
from pard2.engine.draft_length.plain import Cost, expected_seconds, expected_tokens


def settled(target: Cost, draft: Cost, maximum: int, batch: int, sequential: bool = False) -> AdaptiveDraftLength:
    """Lengths that know all times and have the start behind them."""
    lengths = AdaptiveDraftLength(maximum, sequential)
    for times, cost in ((lengths.draft_times, draft), (lengths.target_times, target)):
        for rows in [1, *range(1, 17), *range(18, 34, 2)]:
            times.observe(rows, cost(rows))
    for k in (maximum, maximum, maximum, 2, 2, 0, 0):
        rows = batch * (1 + k)
        lengths.observe(
            MeasuredCycle(proposed=[k] * batch, accepted=[0] * batch, draft_rows=[], draft_seconds=0.0, verify_rows=rows, verify_seconds=target(rows))
        )
    return lengths


# ---- the choice


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("alike", [True, False])
def test_no_vector_of_lengths_beats_the_choice(sequential: bool, alike: bool):
    """Exact where a token costs the same wherever it is put: parallel, backlogs of 1; else within 3 %."""
    world = random.Random(3)
    proposing = 0
    for case in range(40):
        batch, maximum = world.choice([(1, 6), (2, 5), (3, 4)])
        slope, base = world.choice([0.02, 0.1, 0.3]), world.choice([0.1, 0.3])

        def target(rows: float, slope: float = slope) -> float:
            return 1 + slope * rows

        def draft(rows: float, base: float = base) -> float:
            return base + 0.01 * rows

        lengths = settled(target, draft, maximum, batch, sequential)
        acceptances = [lengths.acceptance() for _ in range(batch)]
        for acceptance in acceptances:
            rate = world.random()
            for _ in range(30):
                acceptance.observe(maximum, next((j for j in range(maximum) if world.random() >= rate), maximum))
        limits = [world.randint(0, maximum) for _ in range(batch)]
        backlog = [1 if alike else world.randint(1, maximum + 1) for _ in range(batch)]
        ks = lengths.choose(acceptances, limits, backlog)
        assert all(0 <= k <= limit for k, limit in zip(ks, limits, strict=True))
        chances = [acceptance.chances() for acceptance in acceptances]
        speeds = {
            vector: expected_tokens(vector, chances) / expected_seconds(vector, backlog, draft, target, sequential)
            for vector in itertools.product(*(range(limit + 1) for limit in limits))
        }
        exact = alike and not sequential
        assert speeds[tuple(ks)] >= max(speeds.values()) * (1 - (1e-6 if exact else 0.03)), case
        proposing += any(ks)
    assert 5 < proposing < 40


def test_a_sequence_at_its_limit_or_an_empty_batch_proposes_nothing():
    lengths = AdaptiveDraftLength(4)
    assert lengths.choose([], [], []) == []
    assert lengths.choose([lengths.acceptance()], [0], [7]) == [0]
    assert lengths.choose([lengths.acceptance(), lengths.acceptance()], [0, 1], [1, 1]) == [0, 1]


def test_the_start_tries_many_few_and_none_and_stays_small_in_a_large_batch():
    _, choices = live(AdaptiveDraftLength(MAXIMUM), [even(0.5)], CPU, 7)
    assert choices == [[16], [16], [16], [2], [2], [0], [0]]
    _, choices = live(AdaptiveDraftLength(MAXIMUM), [even(0.5)] * 32, CPU, 7)
    assert max(map(sum, choices)) == 32


def test_what_piled_up_while_nothing_was_proposed_is_read_once():
    """A row of the draft costs, and a backlog of nine rows is not what every cycle leaves."""
    lengths = settled(lambda rows: 1.0 + 0.1 * rows, lambda rows: 0.1 + 0.1 * rows, 8, 1)
    acceptance = lengths.acceptance()
    for _ in range(100):
        acceptance.observe(8, 1)
    chosen = [lengths.choose([acceptance], [8], [backlog])[0] for backlog in (2, 9, 30)]
    assert chosen[0] > 0 and len(set(chosen)) == 1


def test_a_long_backlog_is_no_trap():
    """Reading it costs more than one cycle brings, and far less than all the cycles after it."""
    lengths = settled(lambda rows: 1.0, lambda rows: 0.1 + 0.02 * rows, 8, 1)
    acceptance = lengths.acceptance()
    for _ in range(100):
        acceptance.observe(8, 8)
    lengths.draft_times.observe(600, 12.1)
    lengths.draft_times.observe(600, 12.1)
    assert lengths.choose([acceptance], [8], [600]) == [8]


# ---- whole lives


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("rates", [even(0.05), even(0.3), even(0.6), even(0.9), FALLING], ids=["0.05", "0.3", "0.6", "0.9", "falling"])
def test_within_4_percent_of_the_best_fixed_length(rates: list[float], machine: tuple[Cost, Cost]):
    """The worst is where proposals pay by little: 0.3 on a GPU."""
    speed = statistics.mean(live(AdaptiveDraftLength(MAXIMUM), [rates], machine, 1500, seed)[0] for seed in range(12))
    assert speed > 0.96 * best_fixed([rates], machine)


@pytest.mark.parametrize(("machine", "batch"), [(CPU, 2), (GPU, 8)], ids=["cpu", "gpu"])
def test_better_than_any_fixed_length_on_mixed_load(machine: tuple[Cost, Cost], batch: int):
    load = [even(0.9), even(0.2)] * (batch // 2)
    speed, choices = live(AdaptiveDraftLength(MAXIMUM), load, machine, 800)
    assert speed > 1.01 * best_fixed(load, machine)
    easy, hard = (statistics.mean(ks[i] for ks in choices) for i in (0, 1))
    assert easy > 2 * hard


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize(("before", "after"), [(0.05, 0.9), (0.9, 0.05)])
def test_a_change_of_text_midway_is_followed(before: float, after: float, machine: tuple[Cost, Cost]):
    lengths = AdaptiveDraftLength(MAXIMUM)
    live(lengths, [even(before)], machine, 600)
    speed, _ = live(lengths, [even(after)], machine, 800, seed=1)
    assert speed > 0.9 * best_fixed([even(after)], machine)  # the time to notice included
    speed, _ = live(lengths, [even(after)], machine, 500, seed=2)
    assert speed > 0.96 * best_fixed([even(after)], machine)


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("rates", [even(0.9), even(0.7), FALLING], ids=["easy", "middling", "falling"])
def test_a_busy_machine_is_not_taken_for_one_where_drafts_do_not_pay(rates: list[float], machine: tuple[Cost, Cost]):
    speeds = [live(AdaptiveDraftLength(MAXIMUM), [rates], machine, 800, seed, busy)[0] for seed in range(3)]
    assert statistics.median(speeds) >= 0.9 * best_fixed([rates], machine)


def test_a_change_of_machine_is_followed():
    lengths = AdaptiveDraftLength(MAXIMUM)
    live(lengths, [even(0.8)], GPU, 600)
    live(lengths, [even(0.8)], CPU, 300, seed=1)
    speed, _ = live(lengths, [even(0.8)], CPU, 600, seed=2)
    assert speed > 0.95 * best_fixed([even(0.8)], CPU)


def test_a_large_batch_on_a_steep_machine_is_not_slower_than_plain_by_trials():
    load = [even(0.6)] * 16
    speed, choices = live(AdaptiveDraftLength(MAXIMUM), load, CPU, 400)
    assert speed > 0.98 * fixed_speed(load, 0, CPU)
    assert any(any(ks) for ks in choices[100:])  # yet it goes on looking


def test_an_autoregressive_draft_pays_for_every_pass():
    draft = 0.002
    machine = (flat, lambda rows: draft)
    lengths = AdaptiveDraftLength(MAXIMUM, sequential=True)
    speed, _ = live(lengths, [even(0.8)], machine, 1000)
    assert speed > 0.97 * max(expected(even(0.8), k) / (flat(1 + k) + draft * k) for k in range(MAXIMUM + 1))
    parallel, _ = live(AdaptiveDraftLength(MAXIMUM), [even(0.8)], machine, 300)
    assert parallel > 1.3 * speed
