"""Architectures that would train one function and decode another are refused; the others are not."""

import pytest
import torch

from pard2.data.chat import Example
from pard2.errors import Pard2Error
from pard2.models.target import Target
from pard2.train.compatibility import check_compatibility
from tiny import tiny_draft, tiny_model, tiny_target

SHORT, LONG = (Example(str(n), list(range(n)), [True] * n) for n in (6, 50))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2"])
def test_ordinary_architectures_pass(architecture):
    target = tiny_target(architecture=architecture)
    check_compatibility(target, tiny_draft(target), [SHORT, LONG])


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_a_window_shorter_than_a_conversation_is_refused(architecture):
    """Training's mask shows every past token, decoding's the last 8."""
    target = tiny_target(architecture=architecture)
    check_compatibility(target, tiny_draft(target), [SHORT])
    with pytest.raises(Pard2Error, match=r"slides a window over the longest conversation \(50 tokens\); lower data.max_length"):
        check_compatibility(target, tiny_draft(target), [SHORT, LONG])


def test_attention_that_cannot_take_the_mask_is_refused():
    """Eager attention adds a boolean mask to its scores, as 0 and 1, and goes on."""
    target = tiny_target()
    draft = tiny_draft(target)
    draft.lm.set_attn_implementation("eager")
    with pytest.raises(Pard2Error, match="lacks SDPA attention"):
        check_compatibility(target, draft, [SHORT])


def test_capped_logits_of_a_draft_are_refused():
    target = tiny_target(architecture="gemma2")
    with pytest.raises(Pard2Error, match="caps or scales logits"):
        check_compatibility(target, tiny_draft(target), [SHORT])


def test_scaled_logits_of_a_target_are_refused():
    """Cohere multiplies its logits by a factor; without it, the teacher would be much too unsure."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=61)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("cohere", **shape, logit_scale=0.25, pad_token_id=None, eos_token_id=None))
    target = Target(model, name="tiny-cohere")
    with pytest.raises(Pard2Error, match="'tiny-cohere' turns its final states into logits in a way that training does not know"):
        check_compatibility(target, tiny_draft(target), [SHORT])


def test_a_conversation_longer_than_the_context_is_refused():
    target = Target(tiny_model(context=40))
    with pytest.raises(Pard2Error, match="record 50 has 50 tokens, the models read 40; set data.max_length=40"):
        check_compatibility(target, tiny_draft(target), [SHORT, LONG])
