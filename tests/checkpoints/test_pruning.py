"""New drafts: cut out of a target, or made of a small LM."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from chat_tokenizer import MASK_ID, VOCABULARY, byte_tokenizer
from pard2.checkpoints.pruning import FeatureOptions, as_parallel_draft, cut_draft, default_target_layers, even_layers, unused_token
from pard2.errors import Pard2Error
from pard2.models.draft import DraftSpec, neutral_row
from pard2.models.target import Target
from tiny import MASK, tiny_lm_draft, tiny_model, tiny_target

IDS = torch.tensor([[5, 9, 2, 7, 7, 1]])


@given(st.integers(1, 60).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total))))
def test_even_layers_are_distinct_spread_and_keep_both_ends(case):
    count, total = case
    layers = even_layers(count, total)
    assert len(set(layers)) == count and layers == sorted(layers) and layers[0] == 0
    if count > 1:
        gaps = [b - a for a, b in pairwise(layers)]
        assert layers[-1] == total - 1 and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("count", [0, -1, 7])
def test_more_layers_than_there_are(count):
    with pytest.raises(Pard2Error, match=f"`layers` {count}: the target has 6 layers"):
        even_layers(count, 6)


def test_default_features_are_thinned_to_a_shallow_target():
    assert default_target_layers(37) == default_target_layers(24) == (-1, -8, -16, -24)
    assert default_target_layers(23) == (-1, -8, -16)
    assert default_target_layers(3) == (-1,)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("shared", [False, True])
def test_all_layers_make_the_target_itself(architecture, shared):
    """A weight that is not copied stays random."""
    if shared and architecture == "gemma2":
        pytest.skip("its table cannot be shared")
    target = tiny_target(layers=3, architecture=architecture)
    draft = cut_draft(target, [0, 1, 2], MASK, 4, (-1,), shared_vocabulary=shared).eval()
    torch.testing.assert_close(draft(IDS, None), target.forward(IDS).logits)
    feature = torch.randn(1, 6, 32)
    torch.testing.assert_close(draft(IDS, feature), draft(IDS, None))  # a new projection is zero


def test_chosen_layers_are_the_chosen_ones():
    target = tiny_target(layers=4)
    draft = cut_draft(target, [1, 3], MASK, 4, (-1,))
    for mine, theirs in enumerate([1, 3]):
        for key, tensor in draft.lm.model.layers[mine].state_dict().items():
            assert tensor.equal(target.model.model.layers[theirs].state_dict()[key])
    assert draft.num_layers == len(draft.lm.model.layers) == 2


def test_each_layer_keeps_its_kind_of_attention():
    target = tiny_target(layers=4, architecture="gemma2")
    kinds = target.config.layer_types
    assert len(set(kinds)) == 2
    assert cut_draft(target, [1, 2], MASK, 4, (-1,)).config.layer_types == [kinds[1], kinds[2]]
    assert target.config.layer_types == kinds


@pytest.mark.parametrize("shared", [False, True])
def test_a_half_precision_target_lends_exact_rotary_frequencies(shared):
    """Rounded ones would be trained with."""
    exact = tiny_target().model.model.rotary_emb.inv_freq
    half = Target(AutoModelForCausalLM.from_config(tiny_model().config, dtype=torch.bfloat16))
    draft = cut_draft(half, [0], MASK, 4, (-1,), shared_vocabulary=shared)
    assert draft.lm.dtype == torch.bfloat16 and draft.lm.model.rotary_emb.inv_freq.equal(exact)


def test_training_the_draft_leaves_the_target_alone():
    target = tiny_target()
    before = {key: tensor.clone() for key, tensor in target.model.state_dict().items()}
    draft = cut_draft(target, [0, 1], MASK, 4, (-1,))
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(1)
    assert all(before[key].equal(tensor) for key, tensor in target.model.state_dict().items())
    assert target.config.num_hidden_layers == 2


def test_the_mask_starts_from_a_neutral_row():
    target = tiny_target()
    draft = cut_draft(target, [0], MASK, 4, (-1,))
    tables = [m.get_input_embeddings().weight for m in (draft.lm, target.model)]
    assert not tables[0][MASK].equal(tables[1][MASK]) and tables[0][:MASK].equal(tables[1][:MASK])


@pytest.mark.parametrize(
    ("layers", "mask", "features", "said"),
    [
        ([0, 2], MASK, (-1,), "`layers`: 2 is not a layer of 'tiny-llama', which has 2 (0 to 1)"),
        ([1, 0], MASK, (-1,), "`layers` must rise, each named once"),
        ([0, 0], MASK, (-1,), "`layers` must rise, each named once"),
        ([], MASK, (-1,), "`layers` names no layer"),
        ([0], 61, (-1,), "`mask_token` 61: 'tiny-llama' has token ids 0 to 60"),
        ([0], -1, (-1,), "`mask_token` -1: 'tiny-llama' has token ids 0 to 60"),
        ([0], MASK, (-1, -4), "target layer -4 is not a hidden state of 'tiny-llama', which has 3"),
    ],
)
def test_what_cannot_be_cut(layers, mask, features, said):
    with pytest.raises(Pard2Error) as caught:
        cut_draft(tiny_target(), layers, mask, 4, features)
    assert str(caught.value) == said


def test_the_mask_token_is_one_that_no_text_contains():
    assert unused_token(Target(tiny_model(vocab=VOCABULARY), byte_tokenizer())) == MASK_ID


def test_without_a_padding_row_a_reserved_token_serves():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|reserved_7|>", "<|other|>"])
    assert unused_token(Target(tiny_model(vocab=len(tokenizer)), tokenizer)) == tokenizer.convert_tokens_to_ids("<|reserved_7|>")


def test_no_unused_token_is_an_error_and_not_a_guess():
    tokenizer = byte_tokenizer()
    for target, said in [
        (Target(tiny_model(vocab=len(tokenizer)), tokenizer), "no padding row and no reserved token"),
        (tiny_target(), "no tokenizer"),
    ]:
        with pytest.raises(Pard2Error, match=f"{said}.*`mask_token`"):
            unused_token(target)


def test_a_mask_token_is_asked_for_without_saying_which_might_serve():
    """Not those that the template writes, nor the one that ends an answer."""
    tokenizer = byte_tokenizer(special=("<|file|>", "<|repo|>"))
    tokenizer.chat_template = "<|repo|>" + tokenizer.chat_template
    target = Target(tiny_model(vocab=len(tokenizer)), tokenizer)
    with pytest.raises(Pard2Error, match=r"`mask_token`; special tokens that its chat template does not use: 258 \(<\|file\|>\)$"):
        unused_token(target)


def test_a_small_lm_becomes_a_draft_that_says_what_it_said():
    """Its width need not be the target's; the new projection is zero, so features change nothing yet."""
    target, lm = tiny_target(), tiny_lm_draft(hidden=16).eval()
    said = lm(IDS, None)
    draft = as_parallel_draft(lm, target, MASK, 4, (-1, 0), FeatureOptions(scale=0.5, normalise_features=True, mask_feature=True))
    expected = {"mask_token": MASK, "draft_tokens": 4, "target_layers": (-1, 0), "target_dim": 64, "scale": 0.5}
    assert draft.spec == DraftSpec(**expected, normalise_features=True, mask_feature=True)
    assert draft.projection.weight.shape == (16, 64) and draft.mask_feature.shape == (16,)
    assert draft(IDS, None).equal(said)
    torch.testing.assert_close(draft(IDS, torch.randn(1, 6, 64)), said)
    assert {name for name, p in draft.named_parameters() if not name.startswith("lm.")} == {"projection.weight", "mask_feature"}


def test_a_small_lms_mask_starts_from_a_neutral_row():
    """A reserved token's own row was never trained."""
    lm = tiny_lm_draft()
    before = lm.lm.get_input_embeddings().weight.detach().clone()
    after = as_parallel_draft(lm, tiny_target(), MASK).lm.get_input_embeddings().weight
    assert after[MASK].equal(neutral_row(before)) and after[:MASK].equal(before[:MASK])


def test_a_small_lm_that_cannot_serve():
    with pytest.raises(Pard2Error, match="draft.mask_token=60: 'tiny-lm' has token ids 0 to 49"):
        as_parallel_draft(tiny_lm_draft(vocab=50), tiny_target(), 60)
    with pytest.raises(Pard2Error, match="target layer -4 is not a hidden state of 'tiny-llama', which has 3"):
        as_parallel_draft(tiny_lm_draft(), tiny_target(), MASK, 4, (-4,))
