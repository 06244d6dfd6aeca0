"""The arithmetic of statistics, on steps written by hand."""

import json

import pytest

from pard2.engine.statistics import Stats, Step, Totals

STEPS = [
    Step(token_ids=(7,), accepted=0, proposed=0, seconds=0.5),
    Step(token_ids=(1, 2, 3), accepted=2, proposed=4, seconds=0.2, draft_seconds=0.05, verify_seconds=0.125),
    Step(token_ids=(4,), accepted=0, proposed=4, seconds=0.2, draft_seconds=0.05, verify_seconds=0.125),
    Step(token_ids=(5, 6), accepted=1, proposed=1, seconds=0.1, draft_seconds=0.025, verify_seconds=0.0625, finish_reason="length"),
]


def test_counts_leave_the_prefill_out():
    stats = Stats.of(STEPS)
    assert (stats.cycles, stats.proposed, stats.accepted) == (3, 9, 3)
    assert stats.acceptance_length == 2.0
    assert sum(len(step.token_ids) for step in STEPS) == 1 + stats.cycles + stats.accepted


def test_a_position_is_judged_only_by_cycles_that_proposed_it():
    assert Stats.of(STEPS).accepted_by_position == [2 / 3, 1 / 2, 0, 0]


def test_times_add_up_and_speed_counts_decoding_alone():
    stats = Stats.of(STEPS)
    assert stats.prefill_seconds == 0.5
    assert stats.decode_seconds == pytest.approx(0.5)
    assert stats.draft_seconds + stats.verify_seconds + stats.other_seconds == pytest.approx(stats.decode_seconds)
    assert stats.tokens_per_second == pytest.approx(6 / 0.5)


def test_no_cycle_divides_by_nothing():
    stats = Stats.of(STEPS[:1])
    assert (stats.cycles, stats.acceptance_length, stats.accepted_by_position, stats.tokens_per_second) == (0, 1.0, [], 0.0)


def test_pooled_rates_weigh_cycles_not_completions():
    one, other = Stats.of(STEPS), Stats.of([STEPS[0], Step(token_ids=(1,), accepted=0, proposed=2, seconds=0.1)])
    pooled = one + other
    assert pooled.acceptance_length == 1 + 3 / 4
    assert pooled.accepted_by_position == [2 / 4, 1 / 3, 0, 0]
    assert pooled.prefill_seconds == 1.0


def test_json_has_the_contracts_keys():
    keys = "cycles proposed accepted acceptance_length accepted_by_position accepted_per_cycle prefill_seconds decode_seconds tokens_per_second"
    data = json.loads(json.dumps(Stats.of(STEPS).as_dict()))
    assert set(keys.split()) <= set(data)
    assert data["accepted_per_cycle"] == [2, 0, 1]


def test_a_completion_that_ended_before_its_first_token_counts_nothing():
    assert Stats.of([Step(token_ids=(), accepted=0, proposed=0, seconds=0.0, finish_reason="cancelled")]) == Stats()


def test_the_step_that_only_tells_of_an_end_is_no_cycle():
    ended = [*STEPS[:3], Step(token_ids=(), accepted=0, proposed=0, seconds=0.0, finish_reason="cancelled")]
    assert Stats.of(ended) == Stats.of(STEPS[:3])


def test_totals_count_a_shared_cycle_once_and_a_stretch_is_their_difference():
    before = Totals(cycles=2, tokens=5, prefill_seconds=1.0, decode_seconds=2.0, draft_seconds=0.5, verify_seconds=1.25)
    after = before + Totals(cycles=3, tokens=12, prefill_seconds=0.0, decode_seconds=4.0, draft_seconds=1.0, verify_seconds=2.5)
    stretch = after - before
    assert stretch == Totals(cycles=3, tokens=12, prefill_seconds=0.0, decode_seconds=4.0, draft_seconds=1.0, verify_seconds=2.5)
    assert (stretch.tokens_per_second, stretch.other_seconds) == (3.0, 0.5)
    assert Totals().tokens_per_second == 0.0
