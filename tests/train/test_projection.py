"""The standardised projection is the ordinary one in other units."""

import torch
from torch import nn

from pard2.train.projection import StandardisedProjection, feature_std


def random_linear(bias: bool = False) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(12, 5, bias=bias), torch.logspace(-2, 3, 12)


def test_it_starts_as_what_it_replaces():
    for bias in (False, True):
        linear, std = random_linear(bias)
        features = torch.randn(7, 12) * std
        torch.testing.assert_close(StandardisedProjection(linear, std, 0.02, 0.3)(features), linear(features), rtol=1e-4, atol=1e-4)


def test_its_weight_is_what_it_computes_after_training():
    """A checkpoint holds `weight`; what was learnt must be all in it."""
    linear, std = random_linear()
    projection = StandardisedProjection(linear, std, 0.02, 0.3)
    with torch.no_grad():
        projection.inner.add_(torch.randn_like(projection.inner))
    features = torch.randn(7, 12) * std
    folded = nn.functional.linear(features, projection.weight, projection.bias)
    torch.testing.assert_close(projection(features), folded, rtol=1e-5, atol=1e-4)


def test_one_step_moves_every_feature_alike():
    """`scale * W f` = `unit * V (f / std)`: a change of V by one moves the output by `unit`,
    whichever feature it belongs to."""
    linear, std = random_linear()
    projection = StandardisedProjection(linear, std, 0.02, 0.3)
    with torch.no_grad():
        projection.inner.fill_(1.0)
    moved = 0.02 * projection(torch.diag(std))  # each feature alone, at its typical size
    torch.testing.assert_close(moved, torch.full((12, 5), 0.3 / 12**0.5))


def test_a_dead_feature_does_not_divide_by_zero():
    linear, std = random_linear()
    std[3] = 0.0
    projection = StandardisedProjection(linear, std, 0.02, 0.3)
    assert torch.isfinite(projection.inner).all() and torch.isfinite(projection(torch.randn(2, 12))).all()


def test_only_the_weight_is_learnt():
    linear, std = random_linear()
    assert [name for name, _ in StandardisedProjection(linear, std, 0.02, 0.3).named_parameters()] == ["inner"]


def test_first_tokens_do_not_set_the_scale():
    """They are hundreds of times larger than the rest in a real model."""
    rows = torch.ones(5, 3)
    rows[0] = 1e4
    torch.testing.assert_close(feature_std([rows, 2 * rows]), torch.full((3,), 2.5**0.5))
