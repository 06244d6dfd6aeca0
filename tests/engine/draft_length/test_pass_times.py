"""Times of passes, learnt from noisy ones."""

import random

import pytest

from pard2.engine.draft_length.pass_times import PassTimes


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
