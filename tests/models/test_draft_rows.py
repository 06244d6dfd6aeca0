"""The draft's input rows: features dropped by row, normalised features, the learned mask feature."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from pard2 import Engine, SamplingParams
from pard2.checkpoints.pruning import FeatureOptions, cut_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.engine.drafters.parallel import ParallelDrafter
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.objective.layout import attention_mask, build_layout, slot_features, slot_tokens
from pard2.train.projection import StandardisedProjection
from tiny import MASK, random_prompts, tiny_draft, tiny_target

IDS = torch.tensor([[5, 9, 2, MASK, MASK, 7], [8, MASK, MASK, 1, 3, MASK]])
FEATURES = torch.linspace(-3, 5, 2 * 6 * 64).reshape(2, 6, 64)
KEPT = torch.tensor([[True, False, True, False, True, False], [False, False, True, True, False, True]])
OPTIONS = [{"normalise_features": True}, {"mask_feature": True}, {"normalise_features": True, "mask_feature": True}]


def new_draft(target: Target, **options: bool) -> Draft:
    """A cut draft whose new parts are far from zero."""
    draft = cut_draft(target, [0, 1], MASK, 6, (-1, -2), options=FeatureOptions(scale=0.3, **options))
    torch.manual_seed(1)
    with torch.no_grad():
        draft.projection.weight.normal_(0, 0.5)
        if draft.mask_feature is not None:
            draft.mask_feature.normal_(0, 3.0)
    return draft.eval()


def with_bias(draft: Draft) -> Draft:
    torch.manual_seed(2)
    return Draft(draft.lm, dataclasses.replace(draft.spec, bias=True), nn.Linear(64, 32), mask_feature=draft.mask_feature)


def test_a_row_without_features_is_as_if_there_were_none():
    """The bias goes with them: a draft that saw it in training would miss it in
    target-independent decoding."""
    for options in ({}, *OPTIONS):
        draft = with_bias(new_draft(tiny_target(), **options))
        rows, all_, none = draft.embed(IDS, FEATURES, KEPT), draft.embed(IDS, FEATURES), draft.embed(IDS, None)
        assert rows[~KEPT].equal(none[~KEPT]) and rows[KEPT].equal(all_[KEPT])
        assert not (rows[KEPT] == none[KEPT]).all(-1).any()


def test_a_row_without_features_teaches_nothing_about_them():
    draft = with_bias(new_draft(tiny_target(), mask_feature=True))
    gradients = []
    for ids, features, kept in ((IDS, FEATURES, KEPT), (IDS[KEPT][None], FEATURES[KEPT][None], None)):
        draft.zero_grad()
        (draft.embed(ids, features, kept) * torch.arange(32)).sum().backward()
        gradients.append([draft.projection.weight.grad, draft.projection.bias.grad, draft.mask_feature.grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def by_hand(draft: Draft, ids: list[int], features: Tensor) -> Tensor:
    """Input rows [S, hidden] by the formula, one at a time."""
    rows = []
    for token, feature in zip(ids, features, strict=True):
        if draft.spec.normalise_features:
            parts = [part / (part.square().mean() + 1e-6).sqrt() for part in feature.split(32)]
            feature = torch.cat(parts)
        projected = draft.projection.weight @ feature
        if draft.spec.mask_feature and token == MASK:
            projected = draft.mask_feature
        rows.append(draft.lm.get_input_embeddings().weight[token] + 0.3 * projected)
    return torch.stack(rows)


@pytest.mark.parametrize("options", [{}, *OPTIONS])
def test_rows_are_what_the_formula_says(options):
    draft = new_draft(tiny_target(), **options)
    expected = torch.stack([by_hand(draft, ids, features) for ids, features in zip(IDS.tolist(), FEATURES, strict=True)])
    torch.testing.assert_close(draft.embed(IDS, FEATURES), expected)


def test_each_option_changes_what_the_draft_says():
    plain = new_draft(tiny_target())(IDS, FEATURES)
    said = [new_draft(tiny_target(), **options)(IDS, FEATURES) for options in OPTIONS]
    for index, one in enumerate(said):
        assert not any(torch.allclose(one, other, atol=1e-2) for other in [plain, *said[:index]])


def test_without_features_no_option_counts():
    plain = new_draft(tiny_target())(IDS, None)
    assert all(new_draft(tiny_target(), **options)(IDS, None).equal(plain) for options in OPTIONS)


def test_the_zero_feature_is_normalised_to_itself():
    draft = new_draft(tiny_target(), normalise_features=True)
    assert draft.embed(IDS, torch.zeros(2, 6, 64)).equal(draft.embed(IDS, None))


def test_normalised_features_do_not_overflow_in_half_precision():
    """A residual stream has entries in the hundreds, whose squares float16 cannot hold."""
    draft = new_draft(tiny_target(), normalise_features=True).half()
    torch.testing.assert_close(draft.embed(IDS, 100 * FEATURES.half()), draft.embed(IDS, FEATURES.half()), rtol=0.01, atol=0.01)


def test_a_mask_feature_of_another_spec_is_a_mistake():
    draft = tiny_draft(tiny_target())
    with pytest.raises(ValueError, match="learned mask feature"):
        Draft(draft.lm, draft.spec, draft.projection, mask_feature=torch.zeros(32))
    with pytest.raises(ValueError, match="learned mask feature"):
        Draft(draft.lm, dataclasses.replace(draft.spec, mask_feature=True), draft.projection)


@pytest.mark.parametrize("options", [{}, *OPTIONS])
def test_training_and_decoding_read_the_same_rows(options):
    """Slots under the training mask, against plain causal passes over each anchor's tokens and its chain."""
    draft = new_draft(tiny_target(), **options)
    tokens, features = torch.tensor([5, 9, 2, 7, 1]), torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    depth = 3
    layout = build_layout([5], [[torch.arange(5)] * depth])
    slots = (slot_tokens(layout, tokens, MASK), slot_features(layout, features))
    states = draft.states(slots[0][None], slots[1][None], attention_mask(layout)[None, None], layout.position[None])[0]
    logits = states @ draft.lm.get_output_embeddings().weight.T
    shifted = torch.cat([torch.zeros(1, 64), features[:-1]])
    for anchor in range(5):
        ids = torch.cat([tokens[: anchor + 1], torch.full((depth,), MASK)])
        rows = torch.cat([shifted[: anchor + 1], shifted[anchor].expand(depth, -1)])
        torch.testing.assert_close(logits[layout.anchor == anchor], draft(ids[None], rows[None], depth + 1)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_exported_directory_proposes_as_the_draft_in_memory(options, tmp_path, monkeypatch):
    """An option that is lost on the way lowers acceptance alone; the text would not tell."""
    target = tiny_target()
    draft = new_draft(target, **options)
    save_draft(draft, tmp_path / "draft")
    again = load_draft(str(tmp_path / "draft"), target, torch.float32)
    assert again.spec == draft.spec
    found: list[list[int]] = []
    propose = ParallelDrafter.propose

    def spied(self, requests, selector):
        drafted = propose(self, requests, selector)
        found.append([token for proposal in drafted.proposals for token in proposal.token_ids.tolist()])
        return drafted

    monkeypatch.setattr(ParallelDrafter, "propose", spied)

    def proposed(draft: Draft, method: str) -> list[list[int]]:
        found.clear()
        list(Engine(target, draft, method, 5).generate(random_prompts(4), SamplingParams(max_tokens=12)))
        return found.copy()

    for method in ("pard2-td", "pard2-ti"):
        assert proposed(draft, method) == proposed(again, method)
    assert proposed(draft, "pard2-td") != proposed(new_draft(target), "pard2-td")
    assert proposed(draft, "pard2-ti") == proposed(new_draft(target), "pard2-ti")


def test_a_standardised_projection_takes_its_place():
    """Training swaps it in; the mask feature and the drop by row stay what they are."""
    draft = with_bias(new_draft(tiny_target(), mask_feature=True))
    before = draft.embed(IDS, FEATURES, KEPT)
    draft.projection = StandardisedProjection(draft.projection, torch.linspace(0.1, 9, 64), 0.3, 0.2)
    torch.testing.assert_close(draft.embed(IDS, FEATURES, KEPT), before)
