"""The optimizer, its schedule and the mean of weights, against what they are defined as."""

import pytest
import torch
from torch import nn

from pard2.config import OptimizerConfig
from pard2.train.muon import Muon
from pard2.train.optimizer import Optimizer, WeightAverage, learning_rate


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {"a": nn.Parameter(torch.randn(3, 2)), "b": nn.Parameter(torch.randn(4))}


def take_step(optimizer: Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(seed, 10)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("cosine", [0.5, 1.0, 1.0, 0.55, 0.1]), ("linear", [0.5, 1.0, 1.0, 0.55, 0.1]), ("constant", [0.5, 1.0, 1.0, 1.0, 1.0])],
)
def test_the_rate_at_its_corners(schedule, expected):
    """Two steps of warm-up, the peak at the next, its half-way point, and the last of nine."""
    config = OptimizerConfig(lr=1.0, warmup_steps=2, min_lr_ratio=0.1, schedule=schedule)
    assert [learning_rate(step, 9, config) for step in (0, 1, 2, 5, 8)] == pytest.approx(expected)


def test_cosine_and_linear_differ_between_their_corners():
    quarter = [learning_rate(1, 5, OptimizerConfig(lr=1.0, warmup_steps=0, min_lr_ratio=0.0, schedule=s)) for s in ("cosine", "linear")]
    assert quarter == pytest.approx([0.5 * (1 + 0.5**0.5), 0.75])


def test_a_run_shorter_than_its_warm_up():
    assert learning_rate(3, 4, OptimizerConfig(lr=1.0, warmup_steps=8)) == 0.5


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_projection_has_a_rate_of_its_own(kind):
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 8), torch.randn(8, 8)
    parameters = {name: nn.Parameter(start.clone()) for name in ("lm.weight", "projection.inner")}
    for parameter in parameters.values():
        parameter.grad = gradient.clone()
    Optimizer(parameters, OptimizerConfig(kind=kind, lr=0.01, projection_lr_ratio=4.0, warmup_steps=0)).step(0, 10)
    moved = {name: (parameter - start).detach() for name, parameter in parameters.items()}
    torch.testing.assert_close(moved["projection.inner"], 4 * moved["lm.weight"], rtol=1e-3, atol=1e-6)


def test_every_field_of_adamw_reaches_torchs_own():
    config = OptimizerConfig(lr=0.1, betas=(0.5, 0.7), eps=0.3, weight_decay=0.2, warmup_steps=0, schedule="constant")
    ours = Optimizer(parameters(), config)
    theirs = parameters()
    reference = torch.optim.AdamW(theirs.values(), lr=0.1, betas=(0.5, 0.7), eps=0.3, weight_decay=0.2)
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in theirs.values():
            parameter.grad = torch.randn_like(parameter)
        reference.step()
        take_step(ours, seed)
    for name, parameter in ours.parameters.items():
        torch.testing.assert_close(parameter, theirs[name])


def test_muons_momentum_is_its_own():
    torch.manual_seed(0)
    start = torch.randn(24, 40)
    ours = Optimizer({"a": nn.Parameter(start.clone())}, OptimizerConfig(kind="muon", lr=0.1, momentum=0.5, warmup_steps=0, schedule="constant"))
    theirs = nn.Parameter(start.clone())
    reference = Muon([theirs], lr=0.1, momentum=0.5)
    for seed in range(3):
        take_step(ours, seed)
        torch.manual_seed(seed)
        theirs.grad = torch.randn_like(theirs)
        reference.step()
    assert ours.parameters["a"].equal(theirs)


@pytest.mark.parametrize(("clip", "length"), [(None, 50.0), (0, 50.0), (5.0, 5.0), (100.0, 50.0)])
def test_a_gradient_is_shortened_where_nobody_asked(clip, length):
    optimizer = Optimizer({"a": nn.Parameter(torch.zeros(2))}, OptimizerConfig(clip=clip))
    optimizer.parameters["a"].grad = torch.tensor([30.0, 40.0])
    assert optimizer.clip() == 50.0
    torch.testing.assert_close(optimizer.parameters["a"].grad, torch.tensor([0.6, 0.8]) * length)


def test_a_restored_optimizer_goes_on_bit_for_bit():
    whole, first = (Optimizer(parameters(), OptimizerConfig()) for _ in range(2))
    for seed in range(4):
        take_step(whole, seed)
    for seed in range(2):
        take_step(first, seed)
    second = Optimizer(first.parameters, OptimizerConfig())
    second.load_state_dict(first.state_dict())
    for seed in range(2, 4):
        take_step(second, seed)
    assert all(one.equal(second.parameters[name]) for name, one in whole.parameters.items())


def test_a_state_of_another_shape_is_not_taken():
    optimizer = Optimizer(parameters(), OptimizerConfig())
    take_step(optimizer, 0)
    state = optimizer.state_dict()
    state["b"]["exp_avg"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"shape \[5\] in place of \[4\]"):
        optimizer.load_state_dict(state)


def test_the_mean_is_that_of_its_formula_and_leaves_the_weights_alone():
    trained = parameters()
    average, expected = WeightAverage(trained, 0.8), {name: p.detach().clone() for name, p in trained.items()}
    for step in range(3):
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.add_(step + 1)
                expected[name] = 0.8 * expected[name] + 0.2 * parameter
        average.update()
    weights = {name: p.detach().clone() for name, p in trained.items()}
    with average.in_place():
        for name, parameter in trained.items():
            torch.testing.assert_close(parameter.detach(), expected[name])
    assert all(parameter.equal(weights[name]) for name, parameter in trained.items())
    for name, mean in average.state_dict().items():
        torch.testing.assert_close(mean, expected[name])
