"""The loss mask: exactly what the assistant says, from the first token to the end-of-turn token."""

import pytest
from tokenizers import pre_tokenizers, processors

from chat_tokenizer import CHATML, END_ID, byte_tokenizer
from pard2.data.chat import encode, prompt_ids, prompt_text, tokenize_record, tokenize_records, user_turn_text
from pard2.data.conversations import template_arguments
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


def examples(messages, template=CHATML, **extra):
    tokenizer = byte_tokenizer(template)
    return tokenizer, tokenize_record(tokenizer, {"id": "r1", "messages": messages, **extra}, EOS)


def example(messages, template=CHATML, **extra):
    tokenizer, made = examples(messages, template, **extra)
    assert [one.id for one in made] == ["r1"]
    return tokenizer, made[0]


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
    assert made.token_ids[: len(prompt)].tolist() == prompt
    assert not any(made.predicted[: len(prompt)]) and made.predicted[len(prompt)]
    assert made.token_ids.tolist() == encode(tokenizer, tokenizer.apply_chat_template(turns("hi", "hello"), tokenize=False))


def test_a_template_without_end_tokens_predicts_the_whole_answer():
    tokenizer, made = example(turns("hi", "hello", "so", "yes"), NO_MARKERS)
    assert predicted_text(tokenizer, made) == "helloyes"


def test_a_greeting_is_context():
    """Many conversations begin with one; no prompt stands before it that could be rendered."""
    tokenizer, made = example([{"role": "assistant", "content": "Welcome!"}, *turns("hi", "hello")])
    assert predicted_text(tokenizer, made) == "hello<|end|>" and "Welcome!" in tokenizer.decode(made.token_ids)


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


def test_an_answer_that_a_template_changes_later_is_learned_as_it_was_said():
    """Learned from the last rendering, the draft would never see the first answer's thoughts."""
    tokenizer, made = examples(turns("hi", "hello", "and?", "no"), REWRITING)
    assert [one.id for one in made] == ["r1#1", "r1#2"]
    assert [predicted_text(tokenizer, one) for one in made] == ["<think></think>hello<|end|>", "<think></think>no<|end|>"]
    for one, count in zip(made, (1, 3), strict=True):
        prompt = prompt_ids(tokenizer, turns("hi", "hello", "and?", "no")[:count])
        assert one.token_ids[: len(prompt)].tolist() == prompt and one.predicted.tolist().index(True) == len(prompt)


def test_an_empty_loss_mask_is_refused_by_record():
    with pytest.raises(Pard2Error, match="record r1: no token to predict: no assistant message answers another"):
        examples(turns("hi"))
    silent = "{% for m in messages %}{% if m.role == 'user' %}[u]{{ m.content }}{% endif %}{% endfor %}"
    for messages in (turns("hi", "hello"), turns("hi", "hello", "and?", "no")):
        with pytest.raises(Pard2Error, match="record r1: no token to predict: the chat template shows nothing of answer 1"):
            examples(messages, silent)


def test_an_answer_that_does_not_follow_its_prompt_is_refused_by_record():
    """A template may begin the answer otherwise than decoding; then the renderings'
    difference means nothing."""
    template = CHATML.replace("<|start|>assistant\n{%", "<|start|>assistant\n<think>\n{%")
    with pytest.raises(Pard2Error, match=r"record r1: the chat template does not show answer 1 where decoding begins it, after '.*<think>.n'"):
        examples(turns("hi", "hello"), template)


def test_no_chat_template_names_the_way_out():
    with pytest.raises(Pard2Error, match="no chat template.*`raw`"):
        examples(turns("hi", "hello"), None)


def test_a_template_that_raises_is_one_line():
    with pytest.raises(Pard2Error, match="record r1: the chat template failed: roles must alternate"):
        examples(turns("hi", "hello"), "{{ raise_exception('roles must alternate') }}")


def test_the_users_turn_opens_after_role_and_newline():
    assert user_turn_text(byte_tokenizer()) == "<|start|>user\n"
    assert user_turn_text(byte_tokenizer(SYSTEM_FIRST)).endswith("Be kind.<|end|>\n<|start|>user\n")
    with pytest.raises(Pard2Error, match="does not show the user's text"):
        user_turn_text(byte_tokenizer("nothing"))


# --- where one token ends and the next begins -------------------------------------------------------

MERGES = [("Ċ", "Ċ"), ("e", "l")]  # two newlines are one token, as in most vocabularies


def test_a_token_that_would_reach_over_the_border_is_not_learned():
    """Decoding has read "assistant\\n" when the answer begins; the token "\\n\\n" can no longer follow."""
    tokenizer = byte_tokenizer(merges=MERGES)
    record = {"id": "r1", "messages": turns("hi", "\nhello")}
    prompt = prompt_ids(tokenizer, record["messages"][:1])
    whole = encode(tokenizer, tokenizer.apply_chat_template(record["messages"], tokenize=False))
    assert whole[: len(prompt)] != prompt  # else this tests nothing
    (made,) = tokenize_record(tokenizer, record, frozenset({tokenizer.eos_token_id}))
    assert made.token_ids.tolist() == prompt + encode(tokenizer, "\nhello<|end|>\n")
    assert predicted_text(tokenizer, made) == "\nhello<|end|>"


def test_a_border_inside_a_token_makes_turns_examples_of_their_own():
    tokenizer = byte_tokenizer(merges=MERGES)
    messages = turns("hi", "\nhello", "and?", "\nno")
    made = tokenize_record(tokenizer, {"id": "r1", "messages": messages}, frozenset({tokenizer.eos_token_id}))
    for one, count in zip(made, (1, 3), strict=True):
        prompt = prompt_ids(tokenizer, messages[:count])
        assert one.token_ids[: len(prompt)].tolist() == prompt
    assert [predicted_text(tokenizer, one) for one in made] == ["\nhello<|end|>", "\nno<|end|>"]


def test_answers_are_tokenised_in_their_place():
    """A tokenizer like SentencePiece writes a space before a text by itself; nothing generates that space."""
    tokenizer = byte_tokenizer(NO_MARKERS)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    (made,) = tokenize_record(tokenizer, {"id": "r1", "messages": turns("hi", "hello", "so", "yes")}, EOS)
    assert tokenizer.decode(made.token_ids) == " [u]hi[a]hello[u]so[a]yes"
    assert predicted_text(tokenizer, made) == "helloyes"


def test_records_together_are_tokenised_as_each_alone():
    tokenizer = byte_tokenizer(REWRITING, MERGES)
    records = [{"id": str(n), "messages": turns("hi", "\nhello", "and?", "no")[: 2 * n]} for n in (1, 2)] + [{"id": "t", "text": "hello"}]
    assert tokenize_records(tokenizer, records, EOS) == [tokenize_record(tokenizer, record, EOS) for record in records]
    assert tokenize_records(tokenizer, [], EOS) == []


# --- beside conversations ---------------------------------------------------------------------------


def test_a_plain_text_is_learned_but_for_its_first_token():
    """Nothing stands before the first token that could predict it."""
    tokenizer = byte_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|start|> $A", special_tokens=[("<|start|>", 256)])
    (made,) = tokenize_record(tokenizer, {"id": "r1", "text": "hey"}, EOS)
    assert tokenizer.decode(made.token_ids) == "<|start|>hey" and made.predicted.tolist() == [False, True, True, True]
    with pytest.raises(Pard2Error, match="record r1: no token to predict: the text is 1 tokens long"):
        tokenize_record(byte_tokenizer(None), {"id": "r1", "text": "h"}, EOS)


def test_the_template_gets_tools_and_the_records_own_arguments():
    template = "{% if tools %}{{ tools[0].name }}{% endif %}{% if quiet is defined %}(quiet){% endif %}" + CHATML
    tokenizer, made = example(turns("hi", "hello"), template, tools=[{"name": "clock"}], chat_template_kwargs={"quiet": True})
    assert tokenizer.decode(made.token_ids).startswith("clock(quiet)<|start|>user")
    assert predicted_text(tokenizer, made) == "hello<|end|>"
    record = {"messages": turns("hi"), "tools": [{"name": "clock"}]}
    assert prompt_text(tokenizer, record["messages"], template_arguments(record)).startswith("clock<|start|>")
