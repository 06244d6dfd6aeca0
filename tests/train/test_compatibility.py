"""Architectures that would train one function and decode another are refused; the others are not."""

import pytest
import torch

from pard2.data.corpus import Example
from pard2.errors import Pard2Error
from pard2.models.target import Target
from pard2.train.compatibility import check_compatibility
from tiny import tiny_draft, tiny_model, tiny_target

SHORT, LONG = (Example.of(str(n), list(range(n)), [True] * n) for n in (6, 50))
kinds = pytest.mark.parametrize("kind", ["dense", "blocks", "flex"])
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


ORDINARY = ["llama", "qwen2", "qwen3", "gpt2", "gemma", "phi", "gpt_neox", "opt", "qwen3_moe", "smollm3", "deepseek_v3"]


@pytest.mark.parametrize("kind", ["dense", "blocks"])
@pytest.mark.parametrize("architecture", ORDINARY)
def test_ordinary_architectures_pass(architecture, kind):
    target = tiny_target(architecture=architecture)
    check_compatibility(target, tiny_draft(target), [SHORT, LONG], kind)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # the others hand the same spans on
def test_ordinary_architectures_pass_with_flex(architecture):
    target = tiny_target(architecture=architecture)
    check_compatibility(target, tiny_draft(target), [SHORT], "flex")


@pytest.mark.parametrize(("architecture", "kind"), [("mistral", "dense"), ("mistral", "blocks"), ("mistral", "flex"), ("gemma3_text", "blocks")])
def test_a_window_shorter_than_a_conversation_is_refused(architecture, kind):
    """Training's mask shows every past token, decoding's the last 8."""
    target = tiny_target(architecture=architecture)
    check_compatibility(target, tiny_draft(target), [SHORT], kind)
    with pytest.raises(Pard2Error, match=r"slides a window over the longest conversation \(50 tokens\); lower data.max_length"):
        check_compatibility(target, tiny_draft(target), [SHORT, LONG], kind)


@kinds
def test_attention_that_cannot_take_the_mask_is_refused(kind):
    """Eager attention adds a boolean mask to its scores, as 0 and 1, and goes on."""
    target = tiny_target()
    draft = tiny_draft(target)
    draft.lm.set_attn_implementation("eager")
    with pytest.raises(Pard2Error, match="lacks SDPA attention"):
        check_compatibility(target, draft, [SHORT], kind)


@kinds
@pytest.mark.parametrize("architecture", ["gemma2", "gpt_oss"])
def test_capped_scores_and_attention_sinks_of_a_draft_are_refused(architecture, kind):
    """transformers runs both without SDPA."""
    target = tiny_target(architecture=architecture)
    with pytest.raises(Pard2Error, match="lacks SDPA attention"):
        check_compatibility(target, tiny_draft(target), [SHORT], kind)


@pytest.mark.parametrize("kind", ["blocks", "flex"])
@pytest.mark.parametrize("architecture", ["falcon", "doge"])
def test_masks_of_an_architectures_own_are_refused_where_they_cannot_be_dense(architecture, kind):
    target = tiny_target(architecture=architecture)
    check_compatibility(target, tiny_draft(target), [SHORT], "dense")
    with pytest.raises(Pard2Error, match=rf"cannot be trained with loop.attention={kind} \(.*\); loop.attention=dense may do$"):
        check_compatibility(target, tiny_draft(target), [SHORT], kind)


@kinds
def test_an_architecture_that_fails_on_any_mask_is_refused(kind):
    target = tiny_target(architecture="bloom")
    with pytest.raises(Pard2Error, match="name another draft.path$"):
        check_compatibility(target, tiny_draft(target), [SHORT], kind)


@pytest.mark.parametrize("kind", ["dense", "blocks"])
def test_layers_that_remember_what_stands_before_are_refused(kind):
    """Linear attention takes no mask: it would carry one document, and one chain, into the next."""
    target = tiny_target(architecture="qwen3_next")
    for conversation in (SHORT, LONG):
        with pytest.raises(Pard2Error, match="would compute other logits in training than in decoding"):
            check_compatibility(target, tiny_draft(target), [conversation], kind)


@pytest.mark.parametrize("kind", ["blocks", "flex"])
def test_dropped_attention_weights_are_refused_before_training(kind):
    """Without dropout, as in evaluation, they would not be noticed."""
    target = tiny_target(attention_dropout=0.1)
    with pytest.raises(Pard2Error, match="drops attention weights with probability 0.1 in training; set loop.attention=dense"):
        check_compatibility(target, tiny_draft(target), [SHORT], kind)
    check_compatibility(target, tiny_draft(target), [SHORT], "dense")


@pytest.mark.parametrize("kind", ["dense", "blocks"])
def test_conversations_of_one_token_and_drafts_of_one(kind):
    target = tiny_target()
    for draft_tokens in (1, 6):
        check_compatibility(target, tiny_draft(target, draft_tokens=draft_tokens), [Example.of("1", [5], [True])], kind)


def test_scaled_logits_of_a_target_are_refused():
    """Cohere multiplies its logits by a factor; without it, the teacher would be much too unsure."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=61)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("cohere", **shape, logit_scale=0.25, pad_token_id=None, eos_token_id=None))
    target = Target(model, name="tiny-cohere")
    with pytest.raises(Pard2Error, match="'tiny-cohere' turns its final states into logits in a way that training does not know"):
        check_compatibility(target, tiny_draft(target), [SHORT], "dense")


def test_a_conversation_longer_than_the_context_is_refused():
    target = Target(tiny_model(context=40))
    with pytest.raises(Pard2Error, match="record 50 has 50 tokens, the models read 40; set data.max_length=40"):
        check_compatibility(target, tiny_draft(target), [SHORT, LONG], "dense")
