"""Seconds of a pass by its rows: lines through what was measured, and what other sequences cost."""

import random

import pytest

from pard2.bench.predict.time_curve import FARTHER, Passes, TimeCurve


def test_a_straight_line_is_bent():
    curve = TimeCurve([Passes(rows, 1, 0.02 + 0.001 * rows) for rows in (4, 9, 20)])
    for rows in (1, 4, 6.5, 20, FARTHER * 20):
        assert curve.seconds(rows, 1) == pytest.approx(0.02 + 0.001 * rows)


def test_noise_makes_a_pass_of_more_rows_faster():
    chance = random.Random(3)
    for _ in range(20):
        rows = sorted(chance.sample(range(1, 100), 8))
        curve = TimeCurve([Passes(n, 1 + n % 3, 0.02 + chance.random() / 10, 1 + chance.random()) for n in rows])
        seconds = [curve.seconds(n, 2) for n in range(1, 120)]
        assert seconds == sorted(seconds) and seconds[0] > 0


def test_points_that_agree_are_not_met():
    """Two of one size count by their weights; where nothing falls, each stays as it is."""
    curve = TimeCurve([Passes(1, 1, 1.0), Passes(4, 1, 2.0, 3), Passes(4, 1, 6.0, 1), Passes(9, 1, 8.0)])
    assert [curve.seconds(rows, 1) for rows in (1, 4, 9)] == pytest.approx([1, 3, 8])
    curve = TimeCurve([Passes(1, 1, 1.0), Passes(3, 1, 5.0), Passes(4, 1, 3.0, 3), Passes(9, 1, 8.0)])
    assert [curve.seconds(rows, 1) for rows in (1, 3, 4, 9)] == pytest.approx([1, 3.5, 3.5, 8])


def test_many_sequences_are_taken_for_many_rows():
    """On a GPU 32 rows of 32 sequences take longer than 72 rows of 8: each reads its own keys and values."""
    points = [(1, 1), (9, 1), (16, 1), (8, 8), (72, 8), (32, 32), (288, 32)]
    seconds = {rows: 0.007 + 0.00001 * rows + 0.0001 * (many - 1) for rows, many in points}
    curve = TimeCurve([Passes(rows, many, seconds[rows]) for rows, many in points])
    for rows, many in points:
        assert curve.seconds(rows, many) == pytest.approx(seconds[rows], rel=0.02)
    assert curve.seconds(80, 32) > curve.seconds(80, 8) + 0.0015
    alone = TimeCurve([Passes(rows, many, 0.007 + 0.00001 * rows) for rows, many in points])
    assert alone.seconds(80, 32) == alone.seconds(80, 1)  # where rows explain the times, sequences cost nothing


def test_a_pass_of_no_rows_is_free_or_dearer_than_one_of_some():
    curve = TimeCurve([Passes(8, 1, 0.010), Passes(16, 1, 0.020)])
    assert curve.seconds(1, 1) == pytest.approx(0.005 + 0.005 / 8)  # the line would lead through 0
    alone = TimeCurve([Passes(8, 1, 0.010)])
    assert alone.seconds(1, 1) == alone.seconds(8, 1) == 0.010


def test_what_is_far_from_anything_measured_is_told():
    curve = TimeCurve([Passes(1, 1, 1.0), Passes(8, 4, 2.0), Passes(6, 2, 1.5, widest=16)])
    curve.check(20, 5)
    with pytest.raises(ValueError, match="up to 16 rows, which tell of 20 at most, not of 21"):
        curve.check(21, 1)
    with pytest.raises(ValueError, match="up to 4 sequences, which tell of 5 at most, not of 6"):
        curve.check(8, 6)
    with pytest.raises(ValueError, match="no pass"):
        TimeCurve([])
