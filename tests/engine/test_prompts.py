"""Prompts in their forms, and those that are none."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pard2 import Engine, SamplingParams
from pard2.engine.prompts import encode_prompt
from pard2.errors import Pard2Error
from tiny import greedy, set_eos, tiny_target

WORDS = ["<unk>", "<bos>", "<end>", "user", "answer", "what", "is", "red", "blue"]
TEMPLATE = "{% for m in messages %}user {{ m.content }} {% endfor %}{% if add_generation_prompt %}answer{% endif %}"


def word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(WORDS + [f"w{i}" for i in range(len(WORDS), 61)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<bos>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def target():
    target = tiny_target()
    target.tokenizer = word_tokenizer()
    return target


def test_a_text_becomes_a_users_turn(target):
    assert encode_prompt(target, "what is red") == [3, 5, 6, 7, 4]


def test_raw_text_skips_the_template_and_starts_as_the_model_expects(target):
    assert encode_prompt(target, "what is red", raw=True) == [1, 5, 6, 7]


def test_messages_and_token_ids_are_taken_as_they_are(target):
    assert encode_prompt(target, [{"role": "user", "content": "blue"}, {"role": "user", "content": "red"}]) == [3, 8, 3, 7, 4]
    assert encode_prompt(target, [8, 7]) == [8, 7]


@pytest.mark.parametrize("prompt", ["", "  \n", []])
def test_empty_prompt(target, prompt):
    for raw in (False, True):
        with pytest.raises(Pard2Error, match=r"empty.*`prompt`"):
            encode_prompt(target, prompt, raw)


@pytest.mark.parametrize("wrong", [61, -1])
def test_ids_outside_the_vocabulary(target, wrong):
    with pytest.raises(Pard2Error, match=f"token id {wrong}.*0 to 60"):
        encode_prompt(target, [1, wrong])


def test_a_dict_says_what_the_template_gets_beside_the_messages(target):
    target.tokenizer.chat_template += "{% if quiet %} red{% endif %}{% if tools %} {{ tools[0].name }}{% endif %}"
    messages = [{"role": "user", "content": "what"}]
    plain = encode_prompt(target, messages)
    assert encode_prompt(target, {"messages": messages, "id": "x"}) == plain
    assert encode_prompt(target, {"messages": messages, "chat_template_kwargs": {"quiet": True}, "tools": [{"name": "blue"}]}) == [*plain, 7, 8]
    (made,) = Engine(target).generate([{"messages": messages, "chat_template_kwargs": {"quiet": True}}], SamplingParams(max_tokens=1))
    assert made.prompt_tokens == len(plain) + 1
    for wrong in ({}, {"id": "x"}, {"messages": []}, {"messages": "what"}):
        with pytest.raises(Pard2Error, match="prompt"):
            encode_prompt(target, wrong)


def test_text_without_a_tokenizer_and_chat_without_a_template(target):
    target.tokenizer.chat_template = None
    with pytest.raises(Pard2Error, match="`raw`"):
        encode_prompt(target, "what")
    assert encode_prompt(target, "what", raw=True) == [1, 5]
    target.tokenizer = None
    with pytest.raises(Pard2Error, match="token ids"):
        encode_prompt(target, "what", raw=True)


def test_a_bad_prompt_is_refused_before_a_good_one_is_decoded(target):
    with pytest.raises(Pard2Error, match="empty"):
        Engine(target).generate(["what is red", ""])


def test_one_text_in_place_of_a_list_is_not_read_letter_by_letter(target):
    engine, params = Engine(target), SamplingParams(max_tokens=3)
    assert engine.generate("what is red", params)[0].token_ids == engine.generate(["what is red"], params)[0].token_ids


def test_text_of_a_completion_leaves_its_end_out_even_if_that_is_an_ordinary_word(target):
    ids = greedy(target, [8, 7], 12)
    place = next(i for i in range(2, 12) if ids[i] not in ids[:i])
    (whole,) = Engine(target).generate([[8, 7]], SamplingParams(max_tokens=12))
    assert whole.text == target.tokenizer.decode(ids, skip_special_tokens=True)
    set_eos(target, ids[place])
    (cut,) = Engine(target).generate([[8, 7]], SamplingParams(max_tokens=12))
    assert cut.token_ids == ids[: place + 1]
    assert cut.text == target.tokenizer.decode(ids[:place], skip_special_tokens=True)
