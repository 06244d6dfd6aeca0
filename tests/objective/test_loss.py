"""The readable loss against loops over chains, slots and tokens, and against numerical gradients."""

import math

import pytest
import torch
from loss_cases import OBJECTIVES, Case, random_case, readable

from pard2.objective.loss import Objective, effective_weights
from pard2.objective.weights import Chains


def loop(case: Case, objective: Objective) -> dict[str, float]:
    """The formulas of the module, for one slot after the other."""
    slots = case.slots
    logits = (case.states @ case.head.T + case.bias).tolist()
    teacher = case.teacher_head(case.teacher_states)[slots.teacher_row].tolist()
    chains: dict[int, list[int]] = {}
    for s in sorted(range(len(slots)), key=lambda s: int(slots.depth[s])):
        chains.setdefault(int(slots.chain[s]), []).append(s)
    sums = dict.fromkeys(("loss", "weight", "ce", "kl"), 0.0)
    for members in chains.values():
        q_data, overlap, ce, kl = [], [], [], []
        for s in members:
            z_q, z_p = sum(map(math.exp, logits[s])), sum(map(math.exp, teacher[s]))
            q, p = [math.exp(x) / z_q for x in logits[s]], [math.exp(x) / z_p for x in teacher[s]]
            q_data.append(q[int(slots.label[s])])
            overlap.append(sum(map(min, p, q)))
            ce.append(-math.log(q_data[-1]))
            kl.append(sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
        given = [float(slots.weight[s]) for s in members]
        for k in range(len(members)):
            if objective.weighting == "d-pace":
                c = objective.d_pace_floor
                w = sum(given[m] * math.prod((1 - c) * q_data[j] + c for j in range(m + 1)) for m in range(k, len(members)))
            elif objective.weighting == "overlap":
                w = given[k] * math.prod(overlap[:k])
            else:
                w = given[k]
            sums["weight"] += w
            sums["ce"] += w * ce[k]
            sums["kl"] += w * kl[k]
        accepted = sum(math.prod(overlap[: k + 1]) for k in range(len(members)))
        sums["loss"] += objective.tf_eal_alpha * (1 - accepted / objective.draft_tokens)
    sums["loss"] += objective.ce_alpha * sums["ce"] + objective.kd_alpha * sums["kl"]
    return sums


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_loss_is_the_formula_written_as_a_loop(objective):
    """It catches weights off by one depth, chains mixed up, and a skipped depth that cuts its chain."""
    case = random_case()
    out = readable(case, objective)
    for name, expected in loop(case, objective).items():
        assert math.isclose(float(getattr(out, name).detach()), expected, rel_tol=1e-7), name  # weights are given in float32


@pytest.mark.parametrize("name", ["fixed", "tf-eal", "tf-eal alone"])
def test_gradients_are_numerically_right(name):
    case = random_case([(0, 0, 0), (0, 1, 1), (0, 2, 2), (4, 0, 1)], vocabulary=5)
    assert torch.autograd.gradcheck(lambda *leaves: readable(case.with_leaves(*leaves), OBJECTIVES[name]).loss, case.leaves)


@pytest.mark.parametrize("weighting", ["d-pace", "overlap"])
def test_no_gradient_flows_through_weights(weighting):
    """Through them the draft could lower its loss by being unsure. The weights must act as constants."""
    case, objective = random_case(), Objective(weighting=weighting)
    out = readable(case, objective)
    chains = Chains.of(case.slots.chain, case.slots.depth)
    q = (case.states @ case.head.T + case.bias).softmax(-1).gather(-1, case.slots.label[:, None])[:, 0]
    weight = effective_weights(objective, chains, case.slots.weight.double(), q, out.overlap)
    constant = readable(case.with_weights(weight), Objective())
    for mine, theirs in zip(*(torch.autograd.grad(o.loss, case.leaves) for o in (out, constant)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_correct_is_the_first_choice():
    case = random_case()
    logits = (case.states @ case.head.T + case.bias).tolist()
    expected = [row.index(max(row)) == label for row, label in zip(logits, case.slots.label.tolist(), strict=True)]
    assert readable(case, Objective()).correct.tolist() == expected


@pytest.mark.parametrize("objective", [Objective(tf_eal_alpha=0.0, draft_tokens=3), Objective(d_pace_floor=0.9)], ids=["tf-eal", "d-pace"])
def test_what_is_off_leaves_no_trace(objective):
    """Bit for bit, so that an option that nobody uses cannot change a run."""
    case = random_case(dtype=torch.float32)
    plain, other = readable(case, Objective()), readable(case, objective)
    assert all(getattr(plain, name).equal(getattr(other, name)) for name in vars(plain))
    grads = [torch.autograd.grad(out.loss, case.leaves) for out in (plain, other)]
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


def test_equal_distributions_overlap_fully_and_do_not_diverge():
    case = random_case()
    with torch.no_grad():
        case.head.zero_(), case.bias.zero_(), case.teacher_table.zero_()
    out = readable(case, Objective(weighting="overlap"))
    assert abs(float(out.kl)) < 1e-12
    torch.testing.assert_close(out.overlap, torch.ones_like(out.overlap))
    torch.testing.assert_close(out.weight, case.slots.weight.double().sum())
