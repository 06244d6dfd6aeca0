"""The rule of draft lengths, tried out on all of them, and its fast twin."""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import pytest
from decoding_worlds import KnownTimes
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2.engine.draft_length import plain, vectorised
from pard2.engine.draft_length.pass_times import PassTimes

MOST = {1: 8, 2: 5, 3: 4}  # positions by batch, so that all vectors of lengths are few


# ---- the rule itself, by hand


def test_tokens_are_each_sequences_own_one_and_the_chances_of_what_it_proposes():
    chances = [[0.5, 0.25], [0.75, 0.5]]
    assert plain.expected_tokens([0, 0], chances) == 2
    assert plain.expected_tokens([2, 1], chances) == 2 + 0.75 + 0.75


def test_the_draft_reads_its_backlog_and_then_in_one_pass_or_token_by_token():
    def count(rows: float) -> float:  # 1 a pass and 0.01 a row
        return 1 + 0.01 * rows

    def nothing(rows: float) -> float:
        return 0.0

    assert plain.expected_seconds([0, 0], [5, 7], count, nothing, False) == 0  # nothing is read
    assert plain.expected_seconds([3, 0], [5, 7], count, nothing, False) == pytest.approx(1.07)
    assert plain.expected_seconds([3, 1], [5, 7], count, nothing, False) == pytest.approx(1.14)
    assert plain.expected_seconds([3, 1], [5, 7], count, nothing, True) == pytest.approx(1.12 + 1.01 + 1.01)
    assert plain.expected_seconds([2, 1], [5, 7], nothing, count, True) == pytest.approx(1.05)


@pytest.mark.parametrize(("gain", "length"), [(1.01, 0), (1.02, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_proposals_that_gain_next_to_nothing_are_made(batch: int, gain: float, length: int):
    target, draft = KnownTimes({batch: 1.0, 2 * batch: 1.5 / gain}), KnownTimes({1: 0.0})
    given = [[0.5]] * batch, [1] * batch, [1] * batch
    assert plain.best_lengths(*given, draft.estimate, target.estimate, False) == [length] * batch
    assert vectorised.best_lengths(*given, draft, target, False).lengths == [length] * batch


# ---- its fast twin


MOST_ROWS = 64  # more than any pass here has


@st.composite
def lines(draw: st.DrawFn) -> KnownTimes:
    first, last = draw(st.floats(0.1, 10)), draw(st.floats(0, 30))
    return KnownTimes({1: first, MOST_ROWS: first + last})


@st.composite
def any_times(draw: st.DrawFn) -> KnownTimes:
    """Steps, slopes and flat stretches; never less for more rows."""
    rises = draw(st.lists(st.floats(0, 2), min_size=24, max_size=24))
    return KnownTimes(dict(enumerate(accumulate(rises, initial=draw(st.floats(0.1, 10))), 1)) | {MOST_ROWS: 100.0})


@st.composite
def batches(draw: st.DrawFn, alike: bool) -> tuple[list[list[float]], list[int], list[int]]:
    """(chances, limits, backlog) of one to three sequences.

    alike: where there are several, each has the newest token alone to read
    """
    batch = draw(st.integers(1, 3))
    most = MOST[batch]
    rates = st.lists(st.floats(0, 1), min_size=most, max_size=most)
    chances = [list(accumulate(draw(rates), mul)) for _ in range(batch)]
    limits = draw(st.lists(st.integers(0, most), min_size=batch, max_size=batch).filter(any))
    backlog = [1 if alike and batch > 1 else draw(st.integers(1, most + 1)) for _ in range(batch)]
    return chances, limits, backlog


Batch = tuple[list[list[float]], list[int], list[int]]


def compare(batch: Batch, draft: PassTimes, target: PassTimes, sequential: bool) -> tuple[float, float, float]:
    """Expected speeds: of the fast choice, of the plain one, and of plain decoding."""
    chances, limits, backlog = batch

    def speed(lengths: Sequence[int]) -> float:
        seconds = plain.expected_seconds(lengths, backlog, draft.estimate, target.estimate, sequential)
        return plain.expected_tokens(lengths, chances) / seconds

    fast = vectorised.best_lengths(chances, limits, backlog, draft, target, sequential)
    assert all(0 <= k <= limit for k, limit in zip(fast.lengths, limits, strict=True))
    assert fast.speed == pytest.approx(speed(fast.lengths))
    best = plain.best_lengths(chances, limits, backlog, draft.estimate, target.estimate, sequential)
    return fast.speed, speed(best), speed([0] * len(limits))


def assert_same(speeds: tuple[float, float, float]) -> None:
    """The same speed within rounding. Where proposals are barely worthwhile, rounding decides about them."""
    fast, best, nothing = speeds
    assert fast == pytest.approx(best, rel=1e-9) or max(fast, best) == pytest.approx(plain.WORTHWHILE * nothing, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(batches(alike=True), any_times(), any_times())
def test_a_parallel_drafts_fast_choice_is_another(batch: Batch, draft: PassTimes, target: PassTimes):
    assert_same(compare(batch, draft, target, sequential=False))


@settings(max_examples=100, deadline=None)
@given(batches(alike=True), lines(), any_times())
def test_a_sequential_drafts_fast_choice_is_another(batch: Batch, draft: PassTimes, target: PassTimes):
    assert_same(compare(batch, draft, target, sequential=True))


@settings(max_examples=100, deadline=None)
@given(batches(alike=False), any_times(), any_times(), st.booleans())
def test_different_backlogs_make_the_choice_slower_than_plain_decoding(batch: Batch, draft: PassTimes, target: PassTimes, sequential: bool):
    """The fast choice may miss the best one here.

    `test_no_vector_of_lengths_beats_the_choice` says by how much in usual cases.
    """
    fast, best, nothing = compare(batch, draft, target, sequential)
    assert nothing * (1 - 1e-9) <= fast <= best * plain.WORTHWHILE


def test_a_sequential_draft_goes_deep_for_one_token():
    """The likely second token of one sequence costs a pass; the first token of the other costs none."""
    chances = [[0.9, 0.8], [0.7, 0.1]]
    one, half = KnownTimes({1: 1.0}), KnownTimes({1: 0.5})
    assert plain.best_lengths(chances, [2, 2], [1, 1], half.estimate, one.estimate, True) == [1, 1]
    assert vectorised.best_lengths(chances, [2, 2], [1, 1], half, one, True).lengths == [1, 1]


@pytest.mark.parametrize(("chance", "length", "clearly"), [(0.1, 0, True), (0.4, 0, False), (0.6, 1, False)])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_close_race_is_taken_for_a_clear_one(batch: int, chance: float, length: int, clearly: bool):
    target, draft = KnownTimes({batch: 1.0, 2 * batch: 1.35}), KnownTimes({1: 0.1})
    choice = vectorised.best_lengths([[chance]] * batch, [1] * batch, [1] * batch, draft, target, False)
    assert (choice.lengths, choice.clearly_none) == ([length] * batch, clearly)
