"""COD: whole chains, the right number of them, evenly drawn, the same for the same seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2.objective.cod import cod_correction, keep_masks

cases = st.tuples(
    st.lists(st.booleans(), min_size=1, max_size=24), st.integers(1, 6), st.floats(0.1, 1.0), st.floats(0.0, 1.0), st.integers(0, 2**31)
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def eligible(predicted: list[bool], depth: int) -> list[int]:
    """Anchors followed by depth + 1 tokens that are all to be predicted."""
    return [a for a in range(len(predicted)) if a + depth + 1 < len(predicted) and all(predicted[a + 1 : a + depth + 2])]


@settings(max_examples=100, deadline=None)
@given(cases)
def test_every_kept_mask_has_its_whole_chain(case):
    predicted, k, retention, least, seed = case
    kept = keep_masks(torch.tensor(predicted), k, retention, least, seeded(seed))
    assert len(kept) == k - 1
    chains = set(eligible(predicted, 0))
    for anchors in kept:
        assert anchors.tolist() == sorted(set(anchors.tolist()))
        assert set(anchors.tolist()) <= chains
        chains = set(anchors.tolist())


@settings(max_examples=100, deadline=None)
@given(cases)
def test_only_answer_tokens_are_predicted(case):
    predicted, k, retention, least, seed = case
    for depth, anchors in enumerate(keep_masks(torch.tensor(predicted), k, retention, least, seeded(seed)), 1):
        assert set(anchors.tolist()) <= set(eligible(predicted, depth))


@settings(max_examples=100, deadline=None)
@given(cases)
def test_the_count_is_the_shares_of_the_first_depth(case):
    """Not a share of what the depth before kept, which would shrink twice."""
    predicted, k, retention, least, seed = case
    chains = len(eligible(predicted, 0))
    before = set(eligible(predicted, 0))
    for depth, anchors in enumerate(keep_masks(torch.tensor(predicted), k, retention, least, seeded(seed)), 1):
        successors = before & set(eligible(predicted, depth))
        assert len(anchors) == min(len(successors), round(chains * max(retention**depth, least)))
        before = set(anchors.tolist())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 6))
def test_retention_one_keeps_all(predicted, k):
    kept = keep_masks(torch.tensor(predicted), k, 1.0, 0.0, None)
    assert [anchors.tolist() for anchors in kept] == [eligible(predicted, depth) for depth in range(1, k)]


def test_a_chain_does_not_jump_over_the_next_question():
    """Two answers with a short question between: a chain across it would learn tokens nobody generates."""
    predicted = torch.tensor([0, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    assert [a.tolist() for a in keep_masks(predicted, 4, 1.0, 1.0, None)] == [[0, 3, 4], [3], []]


def test_same_seed_same_masks_other_seed_others():
    predicted = torch.ones(200, dtype=torch.bool)
    one, again, other = (keep_masks(predicted, 4, 0.5, 0.1, seeded(s)) for s in (3, 3, 4))
    assert all(a.equal(b) for a, b in zip(one, again, strict=True))
    assert not one[0].equal(other[0])


def test_no_place_of_the_sequence_is_preferred():
    """Keeping the first so many would train the deep slots on answers' openings alone."""
    predicted = torch.ones(22, dtype=torch.bool)
    generator, counts = seeded(0), torch.zeros(20)
    for _ in range(400):
        counts[keep_masks(predicted, 2, 0.5, 0.0, generator)[0]] += 1
    # 21 chains, 10 of the 20 successors kept: each about 200 times, with a deviation of 10.
    assert counts.sum() == 4000 and counts.min() > 150 and counts.max() < 250


def test_all_anchors_reach_into_the_prompt_and_across_it():
    predicted = torch.tensor([0, 0, 1, 1, 0, 1], dtype=torch.bool)
    assert [a.tolist() for a in keep_masks(predicted, 4, 1.0, 1.0, None, anchors="all")] == [[0, 1, 2, 3], [0, 1, 2], [0, 1]]
    assert [a.tolist() for a in keep_masks(predicted, 4, 1.0, 1.0, None)] == [[1], [], []]


def test_all_anchors_count_the_prompts_chains():
    """A count from the answer alone would starve the deep slots of a short answer behind a long prompt."""
    predicted = torch.zeros(101, dtype=torch.bool)
    predicted[95:] = True
    kept = keep_masks(predicted, 3, 0.5, 0.0, seeded(0), anchors="all")
    assert [len(anchors) for anchors in kept] == [50, 25]


@settings(max_examples=50, deadline=None)
@given(cases, st.sampled_from(["response", "all"]))
def test_correction_is_eligible_over_kept(case, anchors):
    predicted, k, retention, least, seed = case
    kept = keep_masks(torch.tensor(predicted), k, retention, least, seeded(seed), anchors)
    counted = predicted if anchors == "response" else [True] * len(predicted)
    expected = [1.0] + [len(eligible(counted, d)) / len(some) if len(some) else 1.0 for d, some in enumerate(kept, 1)]
    torch.testing.assert_close(cod_correction(torch.tensor(predicted), kept, anchors), torch.tensor(expected))


@pytest.mark.parametrize("anchors", ["response", "all"])
def test_corrected_sums_are_on_average_those_without_dropping(anchors):
    """A correction by 1 / r^d would miss it: at depth d there are fewer slots to draw from than chains."""
    predicted = torch.tensor([0, 0] + [1] * 9 + [0, 0] + [1] * 12, dtype=torch.bool)
    k, draws, generator = 5, 3000, seeded(0)
    value = torch.rand(len(predicted), k, generator=generator)
    exact = torch.tensor([value[a, d].sum() for d, a in enumerate(keep_masks(predicted, k, 1.0, 1.0, None, anchors), 1)])
    sums = torch.zeros(draws, k - 1)
    for draw in range(draws):
        kept = keep_masks(predicted, k, 0.6, 0.2, generator, anchors)
        correction = cod_correction(predicted, kept, anchors)
        sums[draw] = torch.stack([correction[d] * value[a, d].sum() for d, a in enumerate(kept, 1)])
    error = sums.std(0) / draws**0.5
    assert ((sums.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.02 * exact).all()


def test_without_dropping_the_correction_is_exactly_one():
    predicted = torch.tensor([0] + [1] * 7, dtype=torch.bool)
    assert (cod_correction(predicted, keep_masks(predicted, 4, 1.0, 1.0, None)) == 1).all()
