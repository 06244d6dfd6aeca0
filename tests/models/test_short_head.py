"""A draft that can propose a part of its target's vocabulary alone."""

import pytest
import torch
from torch import nn

from pard2.checkpoints.meta import meta_draft
from pard2.checkpoints.pruning import cut_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.kernels.packed import PackedLinear
from pard2.models.short_head import ShortHead
from pard2.models.target import Target
from tiny import MASK, tiny_target

CHOSEN = torch.tensor([40, 7, 3, 59, 12])
IDS = torch.tensor([[3, MASK, 7, MASK, 59]])

needs_fbgemm = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch has no FBGEMM")


def head(dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, ShortHead]:
    torch.manual_seed(0)
    whole = nn.Linear(16, 61, bias=False)
    with torch.no_grad():
        whole.weight.copy_(whole.weight.bfloat16())
    return whole, ShortHead(whole, CHOSEN, dtype)


def test_the_chosen_tokens_have_the_targets_logits_and_the_others_none():
    whole, short = head()
    states = torch.randn(2, 3, 16)
    logits, expected = short(states), whole(states)
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits[..., CHOSEN], expected[..., CHOSEN])
    others = torch.ones(61, dtype=torch.bool).index_fill_(0, CHOSEN, False)
    assert (logits[..., others] == -torch.inf).all()
    torch.testing.assert_close(short.chosen_logits(states), expected[..., CHOSEN.sort().values])


def test_places_find_each_chosen_token_and_no_other():
    _, short = head()
    places = short.places()
    assert places[short.token_ids].tolist() == [0, 1, 2, 3, 4]
    assert (places >= 0).sum() == 5


@needs_fbgemm
def test_the_packed_head_is_the_head_whether_or_not_the_target_was_packed_before():
    whole, short = head()
    states = torch.randn(4, 16)
    again = ShortHead(PackedLinear(whole.weight.detach(), None, "fbgemm"), CHOSEN, torch.float32)
    assert again.weight.equal(short.weight)
    expected = short(states)
    short.convert("fbgemm")
    torch.testing.assert_close(short(states), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def pair():
    target = tiny_target()
    draft = cut_draft(target, [1], MASK, 4, (-1,), shared_vocabulary=True, vocabulary=CHOSEN).eval().requires_grad_(False)
    return target, draft


def test_nothing_of_the_head_belongs_to_the_draft(pair):
    """It would be trained, saved and counted with it."""
    _, draft = pair
    assert not any("head" in key for key in [*draft.state_dict(), *dict(draft.named_parameters())])
    assert draft.spec.vocabulary_size == 5


def test_it_survives_the_disk_and_is_planned_without_weights(pair, tmp_path):
    target, draft = pair
    save_draft(draft, tmp_path / "draft", torch.bfloat16, vocabulary=False)
    again = load_draft(str(tmp_path / "draft"), target, torch.float32)
    assert again.spec.vocabulary_size == 5 and again.short_head.token_ids.equal(draft.short_head.token_ids)
    assert (again(IDS, None) == -torch.inf).equal(draft(IDS, None) == -torch.inf)
    with torch.device("meta"):
        meta = tiny_target().model
    assert meta_draft(str(tmp_path / "draft"), Target(meta)).short_head.weight.shape == (5, 32)


def test_written_out_it_is_an_ordinary_lm_that_proposes_all(pair, tmp_path):
    target, draft = pair
    save_draft(draft, tmp_path / "draft")
    again = load_draft(str(tmp_path / "draft"), target, torch.float32)
    assert again.short_head is None and again.spec.vocabulary_size is None
    torch.testing.assert_close(again(IDS, None)[..., CHOSEN], draft(IDS, None)[..., CHOSEN])
    assert torch.isfinite(again(IDS, None)).all()


def test_only_a_borrowed_head_can_be_short():
    with pytest.raises(ValueError, match="only a draft that shares"):
        cut_draft(tiny_target(), [1], MASK, 4, (-1,), vocabulary=CHOSEN)
