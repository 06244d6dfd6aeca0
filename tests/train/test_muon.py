"""Muon against its definition, in the precision that the CPU is good at, and against torch's own,
which computes in bfloat16."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pard2.config import OptimizerConfig
from pard2.train import muon
from pard2.train.muon import Muon, flops, orthogonal
from pard2.train.optimizer import Optimizer


@pytest.mark.parametrize(("half", "error"), [(False, 1e-3), (True, 5e-2)])
@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_an_orthogonal_matrix_has_the_singular_vectors_and_no_singular_values(shape, half, error, monkeypatch):
    monkeypatch.setattr(muon, "has_bfloat16_products", lambda: half)
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    rest = u.T @ orthogonal(matrix) @ v.T
    values = rest.diagonal()
    assert values.min() > 0.6 and values.max() < 1.3
    torch.testing.assert_close(rest, torch.diag(values), rtol=0, atol=error)


def test_steps_are_those_of_torchs_own():
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(24, 40)) for _ in range(2))
    mine = Muon([ours], lr=0.1, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        # theirs is m <- 0.95 m + 0.05 g; a factor of the whole update, which making it orthogonal takes out
        ours.grad = torch.randn(24, 40)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    moved = ours.detach() - 1
    assert (ours - theirs).abs().max() < 0.03 * moved.abs().max()


def test_tables_and_vectors_are_left_to_adamw():
    torch.manual_seed(0)
    parameters = {name: nn.Parameter(torch.randn(shape)) for name, shape in (("matrix", (8, 8)), ("norm", (8,)), ("table", (20, 8)))}
    by_muon, adamw = (Optimizer(parameters, OptimizerConfig(kind=kind), [parameters["table"]]) for kind in ("muon", "adamw"))
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    by_muon.step(0, 10)
    assert {name: set(state) for name, state in by_muon.state_dict().items()} == {
        "matrix": {"momentum_buffer"},
        "norm": {"step", "exp_avg", "exp_avg_sq"},
        "table": {"step", "exp_avg", "exp_avg_sq"},
    }
    assert adamw.state_dict() == {}
    assert all(parameter.grad is None for parameter in parameters.values())


def test_operations_are_counted_as_the_products_are_made():
    with FlopCounterMode(display=False) as counted:
        orthogonal(torch.randn(48, 16))
    assert counted.get_total_flops() == flops(torch.Size((48, 16)))
