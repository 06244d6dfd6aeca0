"""The reported numbers, on measurements made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from bench_plans import AR, TD, measurement

from pard2.bench.measurement import Answer, Measurement
from pard2.bench.plan import Chunk
from pard2.bench.summary import summarise
from pard2.bench.table import results_table
from pard2.engine.request import Completion
from pard2.engine.statistics import Stats, Totals
from pard2.intervals import bootstrap

PROMISED = [
    *("suite", "method", "batch_size", "draft_tokens", "temperature", "prompts", "tokens", "tokens_per_second", "speedup", "speedup_interval"),
    *("acceptance_length", "acceptance_length_interval", "accepted_by_position", "draft_seconds", "verify_seconds", "other_seconds"),
    "equal_outputs",
]


def two_chunks(td_equal=(True, True)):
    first, second = Chunk("gsm8k", 0, 1, 0, 1), Chunk("gsm8k", 0, 1, 1, 1)
    return [
        measurement(AR, first, 10, 10.0, [Answer(11, 10, 0, True)]),
        measurement(TD, first, 10, 5.0, [Answer(11, 5, 5, td_equal[0])]),
        measurement(AR, second, 20, 40.0, [Answer(21, 20, 0, True)]),
        measurement(TD, second, 20, 10.0, [Answer(21, 5, 15, td_equal[1])]),
    ]


def summary(measurements):
    ar, td = summarise(["gsm8k"], [AR, TD], measurements)
    return ar, td


def test_promised_keys_are_missing():
    for result in summary(two_chunks()):
        assert list(result)[:4] == PROMISED[:4] and set(PROMISED) <= set(result)


def test_speedup_is_a_mean_of_ratios_or_over_another_base():
    """It is the ratio of all tokens per second: (30 / 15 s) / (30 / 50 s)."""
    ar, td = summary(two_chunks())
    assert td["tokens_per_second"] == pytest.approx(30 / 15)
    assert td["speedup"] == pytest.approx(50 / 15, rel=1e-5)
    assert td["speedup_interval"] == pytest.approx([2.0, 4.0])
    assert td["speedup_median"] == pytest.approx(3.0)
    assert ar["speedup"] == 1 and ar["speedup_interval"] == [1, 1]


def test_acceptance_length_leaves_the_targets_own_token_out_or_averages_prompts():
    assert summary(two_chunks())[1]["acceptance_length"] == pytest.approx(1 + 20 / 10)
    assert summary(two_chunks())[1]["acceptance_length_interval"] == pytest.approx([2.0, 4.0])


def test_one_chunk_pretends_to_know_an_interval():
    result = summary(two_chunks()[:2])[1]
    assert result["speedup_interval"] is None and result["prompts"] == 1
    results_table([result], 80)


def test_prompt_that_differs_in_one_repeat_counts_as_equal():
    again = [replace(m, chunk=Chunk("gsm8k", 1, 1, m.chunk.first, 1)) for m in two_chunks((True, False))]
    result = summary(two_chunks() + again)[1]
    assert (result["prompts"], result["equal_outputs"], result["tokens"], result["chunks"]) == (2, 1, 64, 4)


def completion(tokens, accepted, proposed):
    stats = Stats(accepted_per_cycle=accepted, proposed_per_cycle=proposed)
    return Completion(token_ids=tokens, text=None, finish_reason="length", prompt_tokens=3, stats=stats, method="pard2-td")


def test_positions_that_were_not_proposed_count_as_rejected():
    """Three cycles proposed 2, 4 and 1 tokens and accepted 2, 1 and 0."""
    chunk = Chunk("gsm8k", 0, 1, 0, 1)
    ours = completion([1, 2, 3, 4, 5, 6, 7], (2, 1, 0), (2, 4, 1))
    plain = completion([1, 2, 3, 4, 5, 6, 8], (0,) * 6, (0,) * 6)
    made = Measurement.of(
        TD, chunk, [ours], [plain], Totals(cycles=3, tokens=6, prefill_seconds=0, decode_seconds=1.0, draft_seconds=0.2, verify_seconds=0.7), 1.0
    )
    base = Measurement.of(
        AR, chunk, [plain], [plain], Totals(cycles=6, tokens=6, prefill_seconds=0, decode_seconds=1.0, draft_seconds=0.0, verify_seconds=0.9), 1.0
    )
    assert made.proposed_at == (3, 2, 1, 1) and made.accepted_at == (2, 1, 0, 0)
    assert made.answers == (Answer(7, 3, 3, False),)
    result = summary([base, made])[1]
    assert result["accepted_by_position"] == pytest.approx([2 / 3, 0.5, 0, 0], rel=1e-5)
    assert result["equal_outputs"] == 0 and result["other_seconds"] == pytest.approx(0.1)
    assert Measurement.from_dict(made.as_dict()) == made


def test_answers_of_one_token_divide_by_zero():
    chunk = Chunk("gsm8k", 0, 1, 0, 1)
    one = completion([1], (), ())
    made = [Measurement.of(c, chunk, [one], [one], Totals(prefill_seconds=1.0), 1.0) for c in (AR, TD)]
    for result in summary(made):
        assert result["speedup"] is None and result["acceptance_length"] is None and result["tokens_per_second"] == 0
        results_table([result], 80)


def test_bootstrap_covers_too_little_or_too_much():
    """Of ratios of means, against the normal approximation."""
    numbers = np.random.default_rng(1).normal(5.0, 1.0, 400)
    low, high = bootstrap([(x, 1.0) for x in numbers], lambda sums: sums[..., 0] / sums[..., 1])
    half = 1.96 * numbers.std() / 400**0.5
    assert [low, high] == pytest.approx([numbers.mean() - half, numbers.mean() + half], abs=half / 5)
