"""CAT weights, against the product written as a loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2.objective.cod import cod_correction, keep_masks
from pard2.objective.layout import SlotLayout, build_layout
from pard2.objective.weights import Chains, cat_weights, d_pace_weights, overlap_weights


def packed(lengths: list[int], k: int) -> SlotLayout:
    return build_layout(lengths, [keep_masks(torch.ones(n, dtype=torch.bool), k, 1.0, 1.0, None) for n in lengths])


def loop(layout: SlotLayout, probabilities: list[float]) -> list[float]:
    weights = []
    for a, d in zip(layout.anchor_index.tolist(), layout.depth.tolist(), strict=True):
        weight = 1.0
        for j in range(1, d + 1):
            weight *= probabilities[a + j]
        weights.append(weight)
    return weights


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 1000))
def test_weight_is_the_product_written_as_a_loop(lengths, k, seed):
    probabilities = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed)) * 0.999 + 1e-3
    layout = packed(lengths, k)
    expected = torch.tensor(loop(layout, probabilities.double().tolist()))
    torch.testing.assert_close(cat_weights(layout, probabilities.double().log()), expected, rtol=1e-6, atol=0)


def test_the_predicted_tokens_own_probability_is_not_in_its_weight():
    """Off by one to the right, and a hard token would hide itself from the loss."""
    layout = packed([6], 4)
    logprobs = torch.full((6,), -0.5)
    for slot in (layout.predicted_index < 6).nonzero()[:, 0].tolist():
        changed = logprobs.clone()
        changed[layout.predicted_index[slot]] = -9.0
        assert cat_weights(layout, changed)[slot] == cat_weights(layout, logprobs)[slot]


def test_the_anchors_own_probability_is_not_in_the_weight():
    """Off by one to the left: the anchor is known when its chain starts."""
    logprobs = torch.full((6,), -0.5)
    logprobs[2] = -9.0
    layout = packed([6], 3)
    chain = layout.anchor == 2
    assert torch.allclose(cat_weights(layout, logprobs)[chain], torch.exp(-0.5 * layout.depth[chain]))


def test_real_tokens_weigh_one():
    layout = packed([5, 3], 3)
    assert (cat_weights(layout, torch.full((8,), -2.0))[layout.depth == 0] == 1).all()


def test_a_weight_late_in_a_long_row_keeps_its_digits():
    """A difference of float32 running sums would lose them behind thousands of hard tokens."""
    n = 8000
    logprobs = torch.full((n,), -7.3)
    logprobs[-3:] = -0.01
    layout = packed([n], 3)
    last = (layout.anchor == n - 4) & (layout.depth == 2)
    assert math.isclose(float(cat_weights(layout, logprobs)[last]), math.exp(-0.02), rel_tol=1e-6)


def test_an_impossible_token_gives_weight_zero_and_no_nan_behind_it():
    """log 0 = -inf must not poison the running sum of what follows."""
    logprobs = torch.full((6,), -0.5)
    logprobs[2] = -math.inf
    weights = cat_weights(packed([6], 2), logprobs)
    assert torch.isfinite(weights).all()


def test_weights_carry_no_gradient():
    logprobs = torch.full((5,), -0.5, requires_grad=True)
    assert not cat_weights(packed([5], 3), logprobs).requires_grad


@pytest.mark.parametrize("weighting", ["d-pace", "overlap"])
def test_corrected_weights_sum_on_average_to_those_without_dropping(weighting):
    """D-PACE's correction belongs inside its sum; a factor of the slot would miss what COD drops deeper."""
    predicted, k, draws, generator = torch.ones(14, dtype=torch.bool), 4, 3000, torch.Generator().manual_seed(0)
    chance, loss = torch.rand(2, len(predicted), k, generator=generator)

    def weighted_sum(kept: list[torch.Tensor]) -> torch.Tensor:
        places = [(a, d) for d, anchors in enumerate([torch.arange(13), *kept]) for a in anchors.tolist()]
        chain, depth = torch.tensor(places).T
        chains, correction = Chains.of(chain, depth), cod_correction(predicted, kept)[depth]
        values = chance[chain, depth]
        weights = d_pace_weights(chains, values, correction, 0.5) if weighting == "d-pace" else overlap_weights(chains, values, correction)
        return (weights * loss[chain, depth]).sum()

    exact = weighted_sum(keep_masks(predicted, k, 1.0, 1.0, None))
    sums = torch.stack([weighted_sum(keep_masks(predicted, k, 0.6, 0.2, generator)) for _ in range(draws)])
    error = sums.std() / draws**0.5
    assert (sums.mean() - exact).abs() < 4 * error and error < 0.01 * exact
