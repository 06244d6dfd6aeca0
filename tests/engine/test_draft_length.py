"""The draft lengths of a batch, in simulated worlds whose best answer is known."""

import itertools
import random
import statistics
from collections.abc import Callable, Sequence

import pytest

from pard2.engine.draft_length.acceptance import Acceptance
from pard2.engine.draft_length.adaptive import DraftLengths
from pard2.engine.draft_length.pass_times import PassTimes

MAXIMUM = 16
Cost = Callable[[float], float]  # seconds of a pass by its rows


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
    lengths: DraftLengths,
    load: Sequence[Sequence[float]],
    machine: tuple[Cost, Cost],
    cycles: int,
    seed: int = 0,
    disturbed: Disturbance = disturbed,
) -> tuple[float, list[list[int]]]:
    """Decode sequences that accept by the rates of `load` and last 200 cycles each; (tokens per second, all choices).

    The chooser sees disturbed times and drawn acceptances; the speed is of expected tokens and undisturbed times.
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
        lengths.observe(ks, accepted, draft_rows, disturbed(draft_seconds, world), batch + sum(ks), disturbed(verify_seconds, world))
        for i, acceptance in enumerate(acceptances):
            acceptance.observe(ks[i], accepted[i])
            backlog[i] = accepted[i] + 1 if ks[i] else backlog[i] + 1
        tokens += sum(expected(rates, k) for rates, k in zip(load, ks, strict=True))
        seconds += draft_seconds + verify_seconds
        choices.append(ks)
    return tokens / seconds, choices


def settled(target: Cost, draft: Cost, maximum: int, batch: int, sequential: bool = False) -> DraftLengths:
    """Lengths that know all times and have the start behind them."""
    lengths = DraftLengths(maximum, sequential)
    for times, cost in ((lengths.draft_times, draft), (lengths.target_times, target)):
        for rows in [1, *range(1, 17), *range(18, 34, 2)]:
            times.observe(rows, cost(rows))
    for k in (maximum, maximum, maximum, 2, 2, 0, 0):
        lengths.observe([k] * batch, [0] * batch, [], 0.0, batch * (1 + k), target(batch * (1 + k)))
    return lengths


# ---- acceptance


def test_positions_behind_the_first_rejection_do_not_count():
    acceptance = Acceptance(4)
    before = acceptance.rates()
    acceptance.observe(4, 1)
    after = acceptance.rates()
    assert after[0] > before[0] and after[1] < before[1]
    only_guessed = Acceptance(4)
    only_guessed.observe(2, 1)
    assert after == only_guessed.rates()  # positions 2 and 3 were proposed and never tested


def test_a_fully_accepted_block_does_not_count_a_rejection_after_it():
    acceptance = Acceptance(4)
    acceptance.observe(2, 2)
    assert min(acceptance.rates()) > 0.8


def test_chances_are_prefix_products():
    acceptance = Acceptance(3)
    for accepted in (3, 1, 0, 2):
        acceptance.observe(3, accepted)
    a, b, c = acceptance.rates()
    assert acceptance.chances() == pytest.approx([a, a * b, a * b * c])


def test_a_new_sequence_starts_from_what_all_others_did():
    population = Acceptance(4)
    assert population.rates() == [0.8] * 4
    for _ in range(100):
        Acceptance(4, population).observe(4, 0)
    assert Acceptance(4, population).rates()[0] < 0.1


def test_hard_text_is_not_thought_easy_where_it_is_seldom_seen():
    population = Acceptance(8)
    for _ in range(200):
        population.observe(8, 8)
    hard = Acceptance(8, population)
    for _ in range(10):
        hard.observe(8, 0)
    assert hard.rates()[0] < 0.4 and hard.rates()[4] < 0.5 < population.rates()[4]


def test_without_proposals_a_sequence_drifts_back_to_the_population():
    population = Acceptance(4)
    poor, rich = Acceptance(4, population), Acceptance(4, population)
    for _ in range(50):
        poor.observe(4, 0)
        rich.observe(4, 4)
    low, level = poor.rates()[0], population.rates()[0]
    for _ in range(200):
        poor.observe(0, 0)
    assert low < 0.2 and poor.rates()[0] == pytest.approx(population.rates()[0], abs=0.1)
    assert population.rates()[0] > level  # and the population, with nobody asking, to optimism


# ---- times


def test_the_first_pass_of_a_process_is_not_believed():
    times = PassTimes()
    times.observe(4, 100.0)
    with pytest.raises(ValueError, match="no pass"):
        times.estimate(4)
    times.observe(4, 1.0)
    assert times.estimate(4) == 1.0


def test_unseen_rows_are_interpolated_and_extrapolated():
    times = PassTimes()
    for _ in range(30):
        for rows in (2, 2, 6, 12):
            times.observe(rows, 1 + 0.5 * rows)
    assert times.estimate(4) == pytest.approx(3, rel=0.02)
    assert times.estimate(1) == pytest.approx(1.5, rel=0.1)
    assert times.estimate(20) == pytest.approx(11, rel=0.1)


def test_noise_never_makes_more_rows_cheaper():
    world = random.Random(1)
    times = PassTimes()
    for _ in range(300):
        rows = world.randint(1, 100)
        times.observe(rows, (1 + 0.001 * rows) * world.lognormvariate(0, 0.3))
        seen = [times.estimate(rows) for rows in range(400)] if rows % 10 == 0 else [0.0]
        assert seen == sorted(seen) and min(seen) >= 0


def test_a_narrow_range_of_noisy_times_does_not_make_many_rows_dear():
    times = PassTimes()
    for rows, seconds in ((20, 1.0), (20, 1.0), (22, 1.1), (24, 1.2)):
        times.observe(rows, seconds)
    assert times.estimate(80) < 1.3
    assert times.estimate(10_000) > 100  # but nor is a pass far beyond all experience thought free


def test_hold_ups_do_not_poison_a_mean():
    world = random.Random(2)
    times = PassTimes()
    for i in range(1000):
        times.observe(4, world.lognormvariate(0, 0.1) * (10 if world.random() < 0.02 else 1))
        assert i < 50 or times.estimate(4) == pytest.approx(1, rel=0.15)


def test_a_mean_born_from_a_hold_up_recovers_at_once():
    times = PassTimes()
    for seconds in (1.0, 10.0, 1.0):
        times.observe(4, seconds)
    assert times.estimate(4) == 1.0
    times.observe(9, 10.0)  # a size never seen, held up: believed in part only
    assert times.estimate(9) <= 1.5


def test_a_hold_up_never_seen_again_yields_to_passes_of_more_rows():
    times = PassTimes()
    for rows, seconds in ((4, 1.0), (4, 10.0), (5, 1.0), (5, 1.0)):
        times.observe(rows, seconds)
    assert times.estimate(4) <= 1.25


def test_a_slower_machine_is_followed():
    times = PassTimes()
    for seconds in [1.0] * 50 + [3.0] * 80:
        times.observe(4, seconds)
    assert times.estimate(4) == pytest.approx(3, rel=0.15)


def test_old_times_are_forgotten():
    times = PassTimes()
    for rows, seconds in [(4, 5.0)] * 3 + [(1, 1.0)] * 500 + [(8, 2.0)] * 600:
        times.observe(rows, seconds)
    assert times.estimate(4) < 2


def test_passes_of_a_run_share_its_time_and_its_hold_up_counts_once():
    times = PassTimes()
    for _ in range(200):
        times.observe_run([8], 2.0)
        times.observe_run([8, 1, 1, 1], 5.0)
    assert times.estimate(8) == pytest.approx(2, rel=0.05)
    assert times.estimate(1) == pytest.approx(1, rel=0.05)
    times.observe_run([8, *[1] * 15], 170.0)
    assert times.estimate(1) < 1.06


# ---- the choice


def brute_force(
    chances: Sequence[Sequence[float]], limits: Sequence[int], backlog: Sequence[int], target: Cost, draft: Cost, sequential: bool
) -> Callable[[Sequence[int]], float]:
    def speed(ks: Sequence[int]) -> float:
        tokens = len(ks) + sum(sum(chance[:k]) for chance, k in zip(chances, ks, strict=True))
        seconds = target(len(ks) + sum(ks))
        reading = sum(rows for k, rows in zip(ks, backlog, strict=True) if k)
        if any(ks) and sequential:
            seconds += draft(reading) + sum(draft(sum(k > depth for k in ks)) for depth in range(1, max(ks)))
        elif any(ks):
            seconds += draft(reading + sum(max(k - 1, 0) for k in ks))
        return tokens / seconds

    return speed


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("alike", [True, False])
def test_no_vector_of_lengths_beats_the_choice(sequential: bool, alike: bool):
    """Exact where a token costs the same wherever it is put: parallel, equal single-row backlogs; within 3 % elsewhere."""
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
        speed = brute_force([acceptance.chances() for acceptance in acceptances], limits, backlog, target, draft, sequential)
        best = max(map(speed, itertools.product(*(range(limit + 1) for limit in limits))))
        exact = alike and not sequential
        assert speed(ks) >= best * (1 - (1e-6 if exact else 0.03)), case
        proposing += any(ks)
    assert 5 < proposing < 40


def test_a_sequence_at_its_limit_or_an_empty_batch_proposes_nothing():
    lengths = DraftLengths(4)
    assert lengths.choose([], [], []) == []
    assert lengths.choose([lengths.acceptance()], [0], [7]) == [0]
    assert lengths.choose([lengths.acceptance(), lengths.acceptance()], [0, 1], [1, 1]) == [0, 1]


def test_the_start_tries_many_few_and_none_and_stays_small_in_a_large_batch():
    _, choices = live(DraftLengths(MAXIMUM), [even(0.5)], CPU, 7)
    assert choices == [[16], [16], [16], [2], [2], [0], [0]]
    _, choices = live(DraftLengths(MAXIMUM), [even(0.5)] * 32, CPU, 7)
    assert max(map(sum, choices)) == 32


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
def test_within_3_percent_of_the_best_fixed_length(rates: list[float], machine: tuple[Cost, Cost]):
    speed = statistics.mean(live(DraftLengths(MAXIMUM), [rates], machine, 1500, seed)[0] for seed in range(3))
    assert speed > 0.97 * best_fixed([rates], machine)


@pytest.mark.parametrize(("machine", "batch"), [(CPU, 2), (GPU, 8)], ids=["cpu", "gpu"])
def test_better_than_any_fixed_length_on_mixed_load(machine: tuple[Cost, Cost], batch: int):
    load = [even(0.9), even(0.2)] * (batch // 2)
    speed, choices = live(DraftLengths(MAXIMUM), load, machine, 800)
    assert speed > 1.01 * best_fixed(load, machine)
    easy, hard = (statistics.mean(ks[i] for ks in choices) for i in (0, 1))
    assert easy > 2 * hard


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize(("before", "after"), [(0.05, 0.9), (0.9, 0.05)])
def test_a_change_of_text_midway_is_followed(before: float, after: float, machine: tuple[Cost, Cost]):
    lengths = DraftLengths(MAXIMUM)
    live(lengths, [even(before)], machine, 600)
    speed, _ = live(lengths, [even(after)], machine, 800, seed=1)
    assert speed > 0.9 * best_fixed([even(after)], machine)  # the time to notice included
    speed, _ = live(lengths, [even(after)], machine, 500, seed=2)
    assert speed > 0.96 * best_fixed([even(after)], machine)


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("rates", [even(0.9), even(0.7), FALLING], ids=["easy", "middling", "falling"])
def test_a_busy_machine_is_not_taken_for_one_where_drafts_do_not_pay(rates: list[float], machine: tuple[Cost, Cost]):
    speeds = [live(DraftLengths(MAXIMUM), [rates], machine, 800, seed, busy)[0] for seed in range(3)]
    assert statistics.median(speeds) >= 0.9 * best_fixed([rates], machine)


def test_a_change_of_machine_is_followed():
    lengths = DraftLengths(MAXIMUM)
    live(lengths, [even(0.8)], GPU, 600)
    live(lengths, [even(0.8)], CPU, 300, seed=1)
    speed, _ = live(lengths, [even(0.8)], CPU, 600, seed=2)
    assert speed > 0.95 * best_fixed([even(0.8)], CPU)


def test_a_large_batch_on_a_steep_machine_is_not_slower_than_plain_by_trials():
    load = [even(0.6)] * 16
    speed, choices = live(DraftLengths(MAXIMUM), load, CPU, 400)
    assert speed > 0.98 * fixed_speed(load, 0, CPU)
    assert any(any(ks) for ks in choices[100:])  # yet it goes on looking


def test_an_autoregressive_draft_pays_for_every_pass():
    draft = 0.002
    machine = (flat, lambda rows: draft)
    lengths = DraftLengths(MAXIMUM, sequential=True)
    speed, _ = live(lengths, [even(0.8)], machine, 1000)
    assert speed > 0.97 * max(expected(even(0.8), k) / (flat(1 + k) + draft * k) for k in range(MAXIMUM + 1))
    parallel, _ = live(DraftLengths(MAXIMUM), [even(0.8)], machine, 300)
    assert parallel > 1.3 * speed
