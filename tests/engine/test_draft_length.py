"""The adaptive draft length, in a simulated world whose best answer is known."""

import random

import pytest

from pard2.engine.draft_length import DraftLength


def live(lengths: DraftLength, rates: list[float], base: float, slope: float, cycles: int, seed: int = 0) -> list[int]:
    """Run cycles that accept by `rates` and take base + slope k seconds, give or take 3 %; the lengths chosen."""
    world = random.Random(seed)
    chosen = []
    for _ in range(cycles):
        k = lengths.choose()
        assert 1 <= k <= lengths.maximum
        accepted = 0
        while accepted < k and world.random() < rates[accepted]:
            accepted += 1
        lengths.observe(k, accepted, (base + slope * k) * world.uniform(0.97, 1.03))
        chosen.append(k)
    return chosen


def best(rates: list[float], base: float, slope: float) -> int:
    def speed(k: int) -> float:
        expected = reach = 1.0
        for rate in rates[:k]:
            reach *= rate
            expected += reach
        return expected / (base + slope * k)

    return max(range(1, len(rates) + 1), key=speed)


def speed_of(chosen: list[int], rates: list[float], base: float, slope: float) -> float:
    def expected(k: int) -> float:
        total = reach = 1.0
        for rate in rates[:k]:
            reach *= rate
            total += reach
        return total

    return sum(map(expected, chosen)) / sum(base + slope * k for k in chosen)


def test_tries_the_maximum_and_then_one():
    lengths = DraftLength(8)
    chosen = live(lengths, [0.5] * 8, 1, 0.1, 3)
    assert chosen == [8, 8, 1]  # the very first cycle is warm-up, so the maximum is timed again


@pytest.mark.parametrize(
    ("rates", "base", "slope"),
    [
        ([0.9] * 12, 1.0, 0.01),  # length costs nearly nothing: long
        ([0.6] * 12, 1.0, 0.3),  # length costs much: short
        ([0.1] * 12, 1.0, 0.2),  # nothing is accepted: 1
        ([0.9, 0.8, 0.6, 0.3, 0.1, 0.1, 0.1, 0.1], 1.0, 0.06),
    ],
)
def test_comes_within_five_percent_of_the_best_fixed_length(rates, base, slope):
    lengths = DraftLength(len(rates))
    live(lengths, rates, base, slope, 100)
    chosen = live(lengths, rates, base, slope, 400, seed=1)
    assert speed_of(chosen, rates, base, slope) > 0.95 * speed_of([best(rates, base, slope)], rates, base, slope)


def test_follows_the_text_both_ways():
    """Deep positions that were given up must be tried again once the shallow ones do well."""
    lengths = DraftLength(12)
    easy, hard = [0.95] * 12, [0.2] * 12

    def typical() -> float:
        return sum(live(lengths, rates, 1.0, 0.05, 100)[-20:]) / 20

    rates = easy
    assert typical() > 9
    rates = hard
    assert typical() < 4
    rates = easy
    assert typical() > 9


def test_a_position_behind_a_rejection_is_not_blamed():
    lengths = DraftLength(4)
    for _ in range(50):
        lengths.observe(4, 1, 1.0)
    rates = lengths.rates()
    assert rates[0] > 0.95 and rates[1] < 0.1
    assert lengths._trials[2] == lengths._trials[3] == 0


def test_a_slow_first_cycle_is_not_held_against_length():
    lengths = DraftLength(8)
    k = lengths.choose()
    lengths.observe(k, 8, 500.0)
    live(lengths, [0.9] * 8, 1.0, 0.01, 20)
    assert lengths.choose() == 8


def test_noise_that_makes_longer_look_cheaper_does_not_run_away():
    lengths = DraftLength(4)
    for k, seconds in [(4, 1.0), (4, 1.0), (1, 2.0), (4, 0.5), (1, 3.0)]:
        lengths.observe(k, 0, seconds)
    base, slope = lengths._line()
    assert slope == 0 and base > 0


def test_a_maximum_of_one_leaves_no_choice():
    assert live(DraftLength(1), [0.5], 1, 1, 5) == [1] * 5
    with pytest.raises(ValueError):
        DraftLength(0)
