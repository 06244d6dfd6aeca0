"""Small random batches of slots for the tests of the losses."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pard2.objective.loss import LossOutput, Objective, TrainedSlots, weighted_loss

OBJECTIVES = {
    "fixed": Objective(),
    "ce alone": Objective(ce_alpha=1.0, kd_alpha=0.0),
    "kd alone": Objective(ce_alpha=0.0, kd_alpha=1.0),
    "d-pace": Objective(weighting="d-pace", ce_alpha=0.3, d_pace_floor=0.4),
    "overlap": Objective(weighting="overlap", ce_alpha=0.3),
    "tf-eal": Objective(tf_eal_alpha=0.7, draft_tokens=4),
    "tf-eal alone": Objective(ce_alpha=0.0, kd_alpha=0.0, tf_eal_alpha=2.0, draft_tokens=4),
    "overlap and tf-eal": Objective(weighting="overlap", tf_eal_alpha=0.7, draft_tokens=4),
}

# (chain, depth, teacher row): whole chains, a chain of one slot, one cut short, one that begins and one that
# skips behind prompt tokens. Chain ids are neither dense nor in order, and some rows serve several slots.
SLOTS = [
    *[(9, d, d) for d in range(4)],
    (3, 0, 1),
    *[(5, d, 2 + d) for d in range(2)],
    *[(7, d, 1 + d) for d in (2, 3)],
    *[(1, d, 4 + d) for d in (0, 2)],
]


@dataclass(frozen=True)
class Case:
    """P slots, T teacher rows, V tokens."""

    states: Tensor
    head: Tensor
    bias: Tensor
    teacher_states: Tensor
    teacher_table: Tensor
    slots: TrainedSlots

    def teacher_head(self, states: Tensor) -> Tensor:
        return states @ self.teacher_table.T

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.states, self.head, self.bias

    def with_leaves(self, states: Tensor, head: Tensor, bias: Tensor) -> "Case":
        return replace(self, states=states, head=head, bias=bias)

    def with_weights(self, weight: Tensor) -> "Case":
        return replace(self, slots=replace(self.slots, weight=weight))


def random_case(places: list[tuple[int, int, int]] = SLOTS, vocabulary: int = 17, seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
    """Slots at these (chain, depth, teacher row), in random order."""
    g = torch.Generator().manual_seed(seed)
    chain, depth, row = torch.tensor(places)[torch.randperm(len(places), generator=g)].T

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    slots = TrainedSlots(chain, depth, row, torch.randint(0, vocabulary, (len(places),), generator=g), torch.rand(len(places), generator=g))
    leaves = [leaf.requires_grad_() for leaf in (normal(len(places), 4), normal(vocabulary, 4), normal(vocabulary))]
    return Case(*leaves, normal(int(row.max()) + 1, 6), normal(vocabulary, 6), slots)


def readable(case: Case, objective: Objective) -> LossOutput:
    logits = case.states @ case.head.T + case.bias
    return weighted_loss(logits, case.teacher_head(case.teacher_states), case.slots, objective)
