"""The loss mask: exactly what the assistant says, from the first token to the end-of-turn token."""

import pytest

from chat_tokenizer import CHATML, END_ID, byte_tokenizer
from pard2.data.chat import encode, prompt_ids, tokenize_conversation, user_turn_text
from pard2.errors import Pard2Error

EOS = frozenset({END_ID})
NO_MARKERS = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
TRIMMING = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}")
SYSTEM_FIRST = "{% if messages[0].role != 'system' %}<|start|>system\nBe kind.<|end|>\n{% endif %}" + CHATML
# Reasoning models show the thoughts of the last answer only.
REWRITING = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def turns(*texts):
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def example(messages, template=CHATML, max_length=1000, **extra):
    tokenizer = byte_tokenizer(template)
    return tokenizer, tokenize_conversation(tokenizer, {"id": "r1", "messages": messages, **extra}, EOS, max_length)


def predicted_text(tokenizer, made):
    return tokenizer.decode([t for t, p in zip(made.token_ids, made.predicted, strict=True) if p])


@pytest.mark.parametrize("template", [CHATML, SYSTEM_FIRST])
def test_every_answer_with_its_end_token_and_without_the_newline_behind_it(template):
    tokenizer, made = example(turns("hi", "hello", "and?", "no"), template)
    assert predicted_text(tokenizer, made) == "hello<|end|>no<|end|>"


def test_ids_are_those_that_decoding_sees():
    """Tokenised as one text, a merge could reach over the border between prompt and answer."""
    tokenizer, made = example(turns("hi", "hello"))
    prompt = prompt_ids(tokenizer, turns("hi"))
    assert made.token_ids[: len(prompt)] == prompt
    assert not any(made.predicted[: len(prompt)]) and made.predicted[len(prompt)]
    assert made.token_ids == encode(tokenizer, tokenizer.apply_chat_template(turns("hi", "hello"), tokenize=False))


def test_a_template_without_end_tokens_predicts_the_whole_answer():
    tokenizer, made = example(turns("hi", "hello", "so", "yes"), NO_MARKERS)
    assert predicted_text(tokenizer, made) == "helloyes"


def test_an_answer_cut_by_its_limit_has_no_end_to_learn():
    tokenizer, made = example(turns("hi", "hello wor"), finish_reason="length")
    assert predicted_text(tokenizer, made) == "hello wor"
    assert END_ID not in made.token_ids[-5:]


def test_only_the_last_answer_can_have_been_cut():
    tokenizer, made = example(turns("a", "b", "c", "d"), finish_reason="length")
    assert predicted_text(tokenizer, made) == "b<|end|>d"


def test_trimming_templates_are_followed():
    tokenizer, made = example(turns("hi", "  hello \n"), TRIMMING)
    assert predicted_text(tokenizer, made) == "hello<|end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_by_record():
    tokenizer, made = example(turns("hi", "hello"), REWRITING)
    assert predicted_text(tokenizer, made) == "<think></think>hello<|end|>"
    with pytest.raises(Pard2Error, match="record r1: the chat template rewrites earlier turns"):
        example(turns("hi", "hello", "and?", "no"), REWRITING)


def test_an_empty_loss_mask_is_refused_by_record():
    with pytest.raises(Pard2Error, match="record r1: no token to predict"):
        example(turns("hi"))
    with pytest.raises(Pard2Error, match="record r1: no token to predict within 10 tokens"):
        example(turns("a long prompt", "hello"), max_length=10)


def test_the_cut_at_max_length_keeps_tokens_and_mask_together():
    _, whole = example(turns("hi", "hello"))
    _, made = example(turns("hi", "hello"), max_length=len(whole.token_ids) - 4)
    assert made.token_ids == whole.token_ids[:-4] and made.predicted == whole.predicted[:-4]


def test_no_chat_template_names_the_way_out():
    with pytest.raises(Pard2Error, match="no chat template.*--raw"):
        example(turns("hi", "hello"), None)


def test_a_template_that_raises_is_one_line():
    with pytest.raises(Pard2Error, match="the chat template failed: roles must alternate"):
        example(turns("hi", "hello"), "{{ raise_exception('roles must alternate') }}")


def test_the_users_turn_opens_after_role_and_newline():
    assert user_turn_text(byte_tokenizer()) == "<|start|>user\n"
    assert user_turn_text(byte_tokenizer(SYSTEM_FIRST)).endswith("Be kind.<|end|>\n<|start|>user\n")
    with pytest.raises(Pard2Error, match="does not show the user's text"):
        user_turn_text(byte_tokenizer("nothing"))
