"""The training pass of every method against the plainest form of it: each chain run by itself, by the
models' own code."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from train_runs import packed_loss, prepare

from pard2.checkpoints.pruning import cut_draft
from pard2.config import ObjectiveConfig
from pard2.data.corpus import Example
from pard2.models.draft import Draft
from pard2.models.target import Target
from tiny import MASK, tiny_draft, tiny_lm_draft, tiny_target

K = 4
EXAMPLES = [
    Example.of("a", [5, 9, 3, 7, 1, 8, 2, 6], [False, False, True, True, True, False, True, True]),
    Example.of("b", [4, 4, 11, 30, 12], [False, True, True, True, True]),
]
CASES = {
    "pard, plain": ("pard", {"weighting": "none", "ce_alpha": 1.0, "kd_alpha": 0.0}),
    "pard, with KL": ("pard", {"weighting": "none", "ce_alpha": 0.3, "kd_alpha": 0.7}),
    "pard, as pard2": ("pard", {"weighting": "cat"}),
    "pard2": ("pard2", {"weighting": "cat"}),
    "ar": ("ar", {"weighting": "none"}),
}


def the_draft(method: str, target: Target) -> Draft:
    if method == "ar":
        return tiny_lm_draft(layers=2)
    return tiny_draft(target, [0, 1], K) if method == "pard2" else cut_draft(target, [1], MASK, K, options=None)


def brute_force(draft: Draft, target: Target, objective: ObjectiveConfig) -> Tensor:
    """The mean loss: of each anchor a chain of its own, of the tokens up to it and K - 1 masks."""
    losses, weights = [], []
    for example in EXAMPLES:
        ids, predicted = example.token_ids.tolist(), example.predicted
        said = target.forward(torch.tensor([ids]), layers=(-1, -2))
        p = said.logits[0].log_softmax(-1)
        for anchor in range(len(ids) - 1):
            inputs = torch.tensor([ids[: anchor + 1] + [MASK] * (objective.draft_tokens - 1)])
            features = None
            if draft.projection is not None:
                before = torch.cat([torch.zeros_like(said.features[:, :1]), said.features], 1)
                at = [min(position, anchor) for position in range(inputs.shape[1])]
                features = before[:, at]
            logits = draft(inputs, features)[0].log_softmax(-1)
            weight = torch.tensor(1.0)
            for depth in range(objective.draft_tokens):
                place = anchor + depth + 1
                if place >= len(ids) or not predicted[place]:
                    break
                q = logits[anchor + depth]
                kl = F.kl_div(q, p[place - 1], reduction="sum", log_target=True)
                losses.append(weight * (objective.ce_alpha * -q[ids[place]] + objective.kd_alpha * kl))
                weights.append(weight)
                if objective.weighting == "cat":
                    weight = weight * p[place - 1, ids[place]].exp()
    return torch.stack(losses).sum() / torch.stack(weights).sum()


@pytest.mark.parametrize("attention", ["blocks", "dense"])
@pytest.mark.parametrize(("method", "options"), CASES.values(), ids=CASES)
def test_packed_slots_are_chains_of_their_own(method, options, attention):
    """Values and gradients: a mask that sees another chain, a label one place off, a lost weight."""
    target = tiny_target()
    draft = the_draft(method, target).requires_grad_(True)
    objective = ObjectiveConfig(draft_tokens=1 if method == "ar" else K, retention=1.0, feature_drop=0.0, **options)
    plain = brute_force(draft, target, objective)
    parameters = {name: p for name, p in draft.named_parameters() if not name.startswith("mask_feature")}
    expected = torch.autograd.grad(plain, list(parameters.values()), allow_unused=True)
    out = packed_loss(draft, target, prepare(target, EXAMPLES, objective), objective, attention)
    (out.loss / out.weight).backward()
    assert float(out.loss.detach() / out.weight) == pytest.approx(float(plain.detach()), rel=1e-4)
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        assert gradient is not None and parameter.grad is not None, name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=lambda m, n=name: f"{n}: {m}")
