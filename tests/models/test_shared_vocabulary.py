"""A draft that uses its target's embedding and head: only the mask's row is its own."""

import pytest
import torch

from pard2.checkpoints.pruning import cut_draft
from pard2.errors import Pard2Error
from pard2.models.draft import SharedEmbedding, neutral_row
from tiny import MASK, tiny_target

IDS = torch.tensor([[3, MASK, 7, MASK, 59]])


def test_the_mask_has_its_own_row_and_the_others_are_the_targets():
    table = torch.nn.Embedding(61, 8)
    row = torch.arange(8.0)
    shared = SharedEmbedding(table, MASK, row)
    expected = table.weight.detach().clone()
    expected[MASK] = row
    assert shared.weight.equal(expected)
    assert shared(IDS).equal(expected[IDS])
    assert not table.weight[MASK].equal(row)  # the target's table is as it was


def test_only_the_masks_row_is_trained():
    """The frozen table must get no gradient even if it could."""
    target = tiny_target()
    draft = cut_draft(target, [0], MASK, 4, (-1,), shared_vocabulary=True)
    names = {name for name, p in draft.named_parameters() if "embed" in name or "head" in name}
    assert names == {"lm.model.embed_tokens.mask_row"}
    draft(IDS, None).sum().backward()
    assert draft.lm.get_input_embeddings().mask_row.grad.abs().sum() > 0
    assert target.model.get_input_embeddings().weight.grad is None


def test_the_targets_tables_are_not_part_of_the_draft():
    """They would be moved, cast and saved with it."""
    target = tiny_target()
    draft = cut_draft(target, [0], MASK, 4, (-1,), shared_vocabulary=True)
    draft.to(torch.float64)
    assert target.model.get_input_embeddings().weight.dtype == torch.float32
    assert not any("table" in key or "lm_head" in key for key in draft.state_dict())


def test_neutral_row_points_to_the_mean_at_the_length_of_a_typical_row():
    """The mean itself is nearly zero, and the first norm would blow up its gradient."""
    torch.manual_seed(0)
    table = torch.randn(1000, 16) + 0.01
    row = neutral_row(table)
    torch.testing.assert_close(row.norm(), table.norm(dim=-1).median())
    assert torch.nn.functional.cosine_similarity(row, table.mean(0), dim=0) > 0.999
    assert neutral_row(table.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text"])
def test_a_table_that_scales_what_it_holds_is_not_shared(architecture):
    """Gemma multiplies embeddings by the root of the width: the mask's row would be saved in one
    unit and read in the other."""
    with pytest.raises(Pard2Error, match="cannot share a Gemma.TextScaledWordEmbedding; give it a vocabulary of its own"):
        cut_draft(tiny_target(architecture=architecture), [0], MASK, 4, (-1,), shared_vocabulary=True)
