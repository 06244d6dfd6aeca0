"""Logit processors: each row of a block as transformers would treat it alone, and
what goes wrong between rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pard2.engine import verification
from pard2.engine.processors import TokenCounts, _largest, probabilities, process_logits
from pard2.engine.sampling import SamplingParams

NOTHING = torch.tensor([], dtype=torch.long)


def by_transformers(logits: torch.Tensor, params: SamplingParams, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """One row [V], by transformers' own classes where it has any."""
    text, row = torch.tensor([prompt + answer]), logits[None].clone()
    for token, bias in (params.logit_bias or {}).items():
        row[0, token] += bias
    if params.repetition_penalty != 1:
        row = RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))(text, row)
    for token in set(answer):  # not in transformers; the OpenAI API's formula
        row[0, token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
    if params.greedy:
        return row[0]
    if params.temperature != 1:
        row = TemperatureLogitsWarper(float(params.temperature))(text, row)
    if params.top_k:
        row = TopKLogitsWarper(params.top_k)(text, row)
    if params.top_p < 1:
        row = TopPLogitsWarper(params.top_p)(text, row)
    if params.min_p:
        row = MinPLogitsWarper(params.min_p)(text, row)
    return row[0]


def counts_of(prompt: list[int], answer: list[int], vocab: int) -> TokenCounts:
    counts = TokenCounts(prompt, vocab)
    counts.add(torch.tensor(answer, dtype=torch.long))
    return counts


def random_logits(rows: int, vocab: int, spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def assert_same_rows(logits: torch.Tensor, params: SamplingParams, prompt: list[int], answer: list[int], proposed: list[int]) -> None:
    rows = process_logits(logits, params, counts_of(prompt, answer, logits.shape[1]), torch.tensor(proposed, dtype=torch.long))
    for i, row in enumerate(rows):
        torch.testing.assert_close(row, by_transformers(logits[i], params, prompt, answer + proposed[:i]))


tokens = st.lists(st.integers(0, 11), max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 11), min_size=1, max_size=6),
    answer=tokens,
    proposed=tokens,
    seed=st.integers(0, 1000),
    values=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.3, 1.0, 1.7]),
            "top_k": st.integers(0, 14),
            "top_p": st.floats(0.01, 1.0),
            "min_p": st.floats(0.0, 1.0),
            "repetition_penalty": st.sampled_from([0.7, 1.0, 1.3]),
            "presence_penalty": st.sampled_from([-0.5, 0.0, 1.5]),
            "frequency_penalty": st.sampled_from([-0.5, 0.0, 0.8]),
            "logit_bias": st.dictionaries(st.integers(0, 11), st.floats(-100, 100), max_size=3),
        },
    ),
)
def test_every_row_is_what_transformers_makes_of_it_alone(prompt, answer, proposed, seed, values):
    assert_same_rows(random_logits(len(proposed) + 1, 12, seed=seed), SamplingParams(**values), prompt, answer, proposed)


@pytest.mark.parametrize("vocab", [63, 300, 2000, 20000])
@pytest.mark.parametrize("spread", [0.1, 1.5, 6.0])  # from nuclei of nearly everything to nuclei of a few
@pytest.mark.parametrize("values", [{"top_p": 0.9}, {"top_k": 40, "top_p": 0.8}, {"top_k": 5}, {"top_p": 0.95, "min_p": 0.1}, {"min_p": 0.02}])
def test_a_partial_search_finds_the_same_tokens_as_sorting_the_vocabulary(vocab, spread, values):
    # All below 0, so that padding by anything but -inf would show; and rows with nuclei of different sizes.
    logits = random_logits(2, vocab, spread) * torch.tensor([[1.0], [3.0]]) - 50
    assert_same_rows(logits, SamplingParams(temperature=0.9, **values), [1], [], [2])


def test_penalties_computed_once_per_block_would_miss_the_proposals_before_a_row():
    logits = torch.ones(3, 4)
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.125)
    rows = process_logits(logits, params, counts_of([0], [1], 4), torch.tensor([2, 2]))
    said_once, said_twice = 0.5 - 0.25 - 0.125, 0.5 - 0.25 - 0.25
    assert rows.tolist() == [[0.5, said_once, 1.0, 1.0], [0.5, said_once, said_once, 1.0], [0.5, said_once, said_twice, 1.0]]


def test_the_prompt_is_not_counted_as_said():
    params = SamplingParams(presence_penalty=1.0, frequency_penalty=1.0)
    assert process_logits(torch.zeros(1, 3), params, TokenCounts([1, 1], 3), NOTHING).tolist() == [[0.0, 0.0, 0.0]]


def test_a_repeated_token_is_not_penalised_once_per_repetition_by_the_repetition_penalty():
    params = SamplingParams(repetition_penalty=2.0)
    rows = process_logits(torch.tensor([[8.0, -8.0, 8.0]]).expand(3, 3), params, counts_of([0, 0, 1, 1], [0, 0], 3), torch.tensor([0, 0]))
    assert rows.tolist() == [[4.0, -16.0, 8.0]] * 3


def test_adding_tokens_counts_as_if_they_had_been_there_from_the_start():
    params = SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5)
    step_by_step = TokenCounts([5], 6)
    for block in ([1, 1, 2], [], [1, 3]):
        step_by_step.add(torch.tensor(block, dtype=torch.long))
    logits = random_logits(1, 6)
    assert torch.equal(
        process_logits(logits, params, step_by_step, NOTHING),
        process_logits(logits, params, counts_of([5], [1, 1, 2, 1, 3], 6), NOTHING),
    )


def test_a_draft_that_proposes_at_once_has_no_proposals_to_count():
    params = SamplingParams(temperature=1.0, repetition_penalty=1.5)
    logits = random_logits(4, 6)
    rows = process_logits(logits, params, TokenCounts([1, 2], 6), NOTHING)
    for i in range(4):
        torch.testing.assert_close(rows[i], by_transformers(logits[i], params, [1, 2], []))


@pytest.mark.parametrize("values", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"top_k": 2, "top_p": 0.01, "min_p": 1.0}])
def test_ties_at_the_cut_stand_or_fall_together_and_no_row_is_empty(values):
    logits = torch.tensor([[1.0, 3.0, 0.0, 3.0, 3.0]])
    kept = process_logits(logits, SamplingParams(temperature=0.5, **values), None, NOTHING)
    assert kept.tolist() == [[-math.inf, 6.0, -math.inf, 6.0, 6.0]]


def test_ties_that_top_k_keeps_hold_their_share_of_the_nucleus():
    # top-k 2 keeps four tokens by ties: shares 0.4, 0.2, 0.2, 0.2. Were the ties forgotten,
    # 2/3 would be token 0's alone.
    logits = torch.tensor([[0.4, 0.2, 0.2, 0.2, 0.1]]).log()
    kept = process_logits(logits, SamplingParams(temperature=1.0, top_k=2, top_p=0.5), None, NOTHING)
    assert kept.isfinite().tolist() == [[True, True, True, True, False]]


@pytest.mark.parametrize("temperature", [1e-5, 1e5])
@pytest.mark.parametrize("penalty", [1e-5, 1e5])
def test_the_most_extreme_settings_leave_a_distribution(temperature, penalty):
    params = SamplingParams(temperature=temperature, repetition_penalty=penalty, logit_bias={0: 100.0, 1: -100.0}, top_p=1e-9)
    logits = torch.tensor([[300.0, -300.0, 250.0, -torch.inf]])  # a padded vocabulary ends in -inf
    p = probabilities(logits, params, TokenCounts([0, 1, 3], 4), NOTHING)
    torch.testing.assert_close(p.sum(-1), torch.ones(1))


@pytest.mark.parametrize("vocab", [5, 100, 20000])
def test_logits_of_a_broken_checkpoint_do_not_raise_in_the_middle_of_a_batch(vocab):
    logits = random_logits(3, vocab)
    logits[1, 2], logits[2] = torch.nan, torch.nan
    for values in ({"top_p": 0.5}, {"top_k": 3, "top_p": 0.5, "min_p": 0.1}):
        params = SamplingParams(temperature=0.5, **values)
        p = probabilities(logits, params, None, NOTHING)
        assert bool(p[1:].isnan().any(-1).all())  # for the engine to notice
        assert torch.equal(p[0], probabilities(logits[:1], params, None, NOTHING)[0])


def test_greedy_logits_are_penalised_and_biased_but_not_cut():
    params = SamplingParams(top_k=1, top_p=0.1, min_p=1.0, presence_penalty=1.0, logit_bias={0: 0.5})
    assert process_logits(torch.tensor([[0.0, 2.0, 1.5]]), params, counts_of([0], [1], 3), NOTHING).tolist() == [[0.5, 1.0, 1.5]]


def test_half_precision_logits_are_not_processed_in_half_precision_nor_overwritten():
    logits = torch.tensor([[20.0, 20.125, 3.0]], dtype=torch.bfloat16)
    before = logits.clone()
    rows = process_logits(logits, SamplingParams(temperature=0.7, presence_penalty=0.01, top_k=2), counts_of([2], [0], 3), NOTHING)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, torch.tensor([[19.99 / 0.7, 20.125 / 0.7, -torch.inf]]))
    assert torch.equal(logits, before)
    assert process_logits(logits, SamplingParams(), None, NOTHING).dtype == torch.float32


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 3), width=st.integers(700, 1000), levels=st.integers(1, 50), seed=st.integers(0, 1000))
def test_the_largest_values_are_found_block_by_block_whatever_the_ties(count, width, levels, seed):
    scores = torch.randint(0, levels, (2, width), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(_largest(scores, count), scores.topk(count).values)


def test_a_place_where_nothing_is_proposed_leaves_the_rows_before_it_as_they_are():
    """Its id is -1, which would index the last token: here that token is said by the block itself."""
    logits, params = (
        torch.randn(4, 5, generator=torch.Generator().manual_seed(0)),
        SamplingParams(max_tokens=9, repetition_penalty=2.0, frequency_penalty=1.5),
    )
    for last in (4, 0, 2):
        expected = process_logits(logits[:2], params, TokenCounts([1], 5), torch.tensor([last]))
        rows = process_logits(logits, params, TokenCounts([1], 5), torch.tensor([last, verification.NOTHING, verification.NOTHING]))
        assert torch.equal(rows[:2], expected)
