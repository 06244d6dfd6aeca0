"""Chat templates of the usual shapes, without generation markers: every answer follows what decoding reads.

The templates are our own and imitate what distinguishes each family: text that is trimmed,
inserted, dropped or refused.
"""

import pytest

from chat_tokenizer import CHATML, byte_tokenizer
from pard2.data.chat import prompt_ids, tokenize_record
from pard2.data.conversations import template_arguments, to_record
from pard2.errors import Pard2Error

# Headers with two newlines, trimmed texts, nothing behind the end of a turn, tools first, calls as JSON.
LLAMA3 = (
    "<|start|>{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "[{{ 'ipython' if m.role == 'tool' else m.role }}]\n\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content | trim }}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
# Thoughts of the last answer only; an empty thought where it has none, and in the prompt if thinking is off.
QWEN3 = (
    "{% set ns = namespace(query=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% set thought = parts[0].split('<think>')[-1] | trim if parts | length > 1 else '' %}"
    "{% if loop.index0 > ns.query and (loop.last or thought) %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ parts[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
# A system message that nobody wrote.
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|start|>system\nBe kind.<|end|>\n{% endif %}"
    "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# No prompt for the answer to begin with: it follows the instruction, after a space.
MISTRAL = (
    "<|start|>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
)
# The assistant is called model; texts are trimmed; there is no system role, and roles must alternate.
GEMMA = (
    "<|start|>{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
# The prompt does not open the thought, and history drops it: what was thought is never shown.
R1 = (
    "<|start|>{% for m in messages %}{% if m.role == 'user' %}[User]{{ m.content }}{% else %}"
    "[Assistant]{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}[Assistant]{% endif %}"
)
# The prompt opens it.
R1_DISTILL = R1.replace("%}[Assistant]{%", "%}[Assistant]<think>\n{%")
QWQ = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
)
# As Qwen3, but the prompt opens the thought.
QWEN3_THINKING = QWEN3.replace(
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}", "assistant\n<think>\n"
)
# The prompt opens the thought, or closes one that was none.
V31 = R1.replace("%}[Assistant]{%", "%}[Assistant]{{ '<think>' if thinking else '</think>' }}{%").replace(
    "[Assistant]{{ m", "[Assistant]</think>{{ m"
)

PLAIN = ["hi", "hello", "and?", "no\nand no", "so", "yes"]
THOUGHTS = ["hi", "<think>\nA greeting.\n</think>\n\nhello", "and?", "<think>\nHm.\n</think>\n\nno"]


WHOLE, OWN = "<think>\nI think so.\n</think>\n\nhello", "I think so.\n</think>\n\nhello"
FIELD = {"content": "hello", "reasoning_content": "I think so."}
CALL = {"content": "", "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {"zone": 'é"u'}}}]}
NOT_WHERE = "answer 1 where decoding begins it, after"
NO_THOUGHTS = "record r1: the chat template does not show the thoughts of answer 1"


def turns(texts):
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def learned(template, messages, **extra):
    """The text that each example predicts; checks that it stands where decoding would have put it."""
    tokenizer = byte_tokenizer(template)
    record = {"id": "r1", "messages": messages, **extra}
    made = tokenize_record(tokenizer, record, frozenset({tokenizer.eos_token_id}))
    starts = [(one, i) for one in made for i, p in enumerate(one.predicted) if p and not one.predicted[i - 1]]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(starts) == len(answers)
    for (one, start), answer in zip(starts, answers, strict=True):
        assert one.token_ids[:start].tolist() == prompt_ids(tokenizer, messages[:answer], template_arguments(record))
    return [tokenizer.decode([t for t, p in zip(one.token_ids, one.predicted, strict=True) if p]) for one in made]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAMA3, ["hello<|end|>no\nand no<|end|>yes<|end|>"]),
        (SMOLLM2, ["hello<|end|>no\nand no<|end|>yes<|end|>"]),
        (MISTRAL, [" hello<|end|> no\nand no<|end|> yes<|end|>"]),
        (GEMMA, ["hello<|end|>no\nand no<|end|>yes<|end|>"]),
    ],
    ids=["llama3", "smollm2", "mistral", "gemma"],
)
def test_templates_that_only_append_make_one_example(template, expected):
    assert learned(template, turns(PLAIN)) == expected
    # Llama-3 and Gemma trim what a user and the assistant say.
    trimmed = learned(template, turns([f" {text} " for text in PLAIN]))
    assert trimmed == expected if "trim" in template else trimmed != expected


@pytest.mark.parametrize("template", [LLAMA3, SMOLLM2, QWEN3], ids=["llama3", "smollm2", "qwen3"])
def test_a_system_message_is_context(template):
    (text,) = learned(template, [{"role": "system", "content": "Be brief."}, *turns(PLAIN[:2])])
    assert text.endswith("hello<|end|>") and "brief" not in text


def test_qwen3_learns_each_answer_with_its_own_thoughts():
    """In the last rendering the first answer's thoughts are missing; the target had generated them."""
    assert learned(QWEN3, turns(THOUGHTS)) == ["<think>\nA greeting.\n</think>\n\nhello<|end|>", "<think>\nHm.\n</think>\n\nno<|end|>"]


def test_qwen3_without_thoughts_in_the_data_learns_the_empty_thought():
    empty = "<think>\n\n</think>\n\n"
    assert learned(QWEN3, turns(PLAIN[:4])) == [f"{empty}hello<|end|>", f"{empty}no\nand no<|end|>"]


def test_qwen3_without_thinking_has_the_empty_thought_in_its_prompt():
    off = {"enable_thinking": False}
    assert learned(QWEN3, turns(PLAIN[:4]), chat_template_kwargs=off) == ["hello<|end|>", "no\nand no<|end|>"]
    with pytest.raises(Pard2Error, match="record r1: the chat template does not show answer 1 where decoding begins it"):
        learned(QWEN3, turns(THOUGHTS), chat_template_kwargs=off)


def test_a_thought_cut_by_its_limit_is_learned_as_it_was_said():
    """The template closes such a thought, which the target never did."""
    assert learned(QWEN3, turns(["hi", "<think>\nA greet"]), finish_reason="length") == ["<think>\nA greet"]


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        (R1, {"content": WHOLE}, WHOLE),
        (R1, {"content": f" {WHOLE}\n"}, f" {WHOLE}"),
        (R1, FIELD, WHOLE),
        (R1, {"content": "hello"}, "hello"),
        (R1_DISTILL, {"content": OWN}, OWN),
        (R1_DISTILL, {"content": WHOLE}, OWN),
        (R1_DISTILL, FIELD, OWN),
        (R1_DISTILL, {"content": "hello", "reasoning": " I think so.\n"}, OWN),
        (QWQ, {"content": OWN}, OWN),
        (QWQ, {"content": WHOLE}, OWN),
        (QWQ, {"content": "hello", "thinking": "I think so."}, OWN),
        (QWEN3, {"content": OWN}, WHOLE),
        (QWEN3, FIELD, WHOLE),
        (QWEN3, {"content": "<think>I think so.</think>hello"}, WHOLE),
        (QWEN3_THINKING, {"content": OWN}, OWN),
        (QWEN3_THINKING, {"content": WHOLE}, OWN),
        (QWEN3_THINKING, FIELD, OWN),
        (CHATML, {"content": WHOLE}, WHOLE),
        (CHATML, {"content": "hello", "reasoning_content": "", "thinking": None}, "hello"),
    ],
)
def test_thoughts_are_learned_as_the_target_says_them(template, answer, expected):
    """Learned from what the template shows of them later, they were lost, or the answer was refused."""
    assert learned(template, [*turns(["hi"]), {"role": "assistant", **answer}]) == [f"{expected}<|end|>"]


@pytest.mark.parametrize(
    ("template", "answer", "message"),
    [
        (R1_DISTILL, {"content": "hello"}, NOT_WHERE),
        (QWQ, {"content": "hello"}, NOT_WHERE),
        (V31, {"content": WHOLE}, NO_THOUGHTS),
        (CHATML, FIELD, NO_THOUGHTS),
        (CHATML, {"content": "hello", "reasoning": "I think so."}, NO_THOUGHTS),
        (CHATML, {"content": "hello", "thinking": "I think so."}, NO_THOUGHTS),
        (LLAMA3.replace("m.content | trim", "m.content | truncate(3)"), {"content": "hello there"}, "does not show the text of answer 1"),
        (CHATML, CALL, "does not show the tool calls of answer 1"),
        (CHATML, CALL | {"content": None}, "does not show the tool calls of answer 1"),
        (LLAMA3.replace(".function | tojson", ".function.name"), CALL, "does not show the tool calls of answer 1"),
        (CHATML, {"content": ""}, "no token to predict: answer 1 is empty"),
        (CHATML, {"content": " \n"}, "no token to predict: answer 1 is empty"),
        (CHATML, {"content": "", "reasoning_content": " "}, "no token to predict: answer 1 is empty"),
    ],
)
def test_an_answer_that_is_not_shown_whole_is_not_learned(template, answer, message):
    """A draft would learn to leave out what its target says, or to end at once."""
    with pytest.raises(Pard2Error, match=message):
        learned(template, [*turns(["hi"]), {"role": "assistant", **answer}])


def test_thoughts_behind_a_prompt_that_opens_them_on_demand():
    messages = [*turns(["hi"]), {"role": "assistant", "content": OWN}]
    assert learned(V31, messages, chat_template_kwargs={"thinking": True}) == [f"{OWN}<|end|>"]
    assert learned(V31, turns(["hi", "hello"])) == ["hello<|end|>"]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss_mask": 0}, {"loss_mask": False}])
def test_an_answer_that_says_so_is_context_only(mark):
    messages = turns(PLAIN)
    messages[1] |= mark
    messages[3] |= {name: 1 for name in mark}
    tokenizer = byte_tokenizer(CHATML)
    record = to_record({"messages": messages}, "f:1")
    shared = to_record({"conversations": [{"from": m.pop("role"), "value": m.pop("content"), **m} for m in map(dict, messages)]}, "f:1")
    (made,) = tokenize_record(tokenizer, record, frozenset({tokenizer.eos_token_id}))
    assert tokenize_record(tokenizer, shared, frozenset({tokenizer.eos_token_id})) == [made]
    assert tokenizer.decode([t for t, p in zip(made.token_ids, made.predicted, strict=True) if p]) == "no\nand no<|end|>yes<|end|>"
    assert "hello" in tokenizer.decode(made.token_ids)
    with pytest.raises(Pard2Error, match="record r1: no token to predict: its answers are context only"):
        learned(CHATML, [messages[0], messages[1]])
    with pytest.raises(Pard2Error, match=r"record r1: answer 1: `weight` is \[1, 0\]; known are 1 or true"):
        learned(CHATML, [messages[0], messages[1] | {"weight": [1, 0]}])


def test_calls_of_tools_are_answers_and_their_results_are_not():
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "utc"}}}
    messages = [
        *turns(["time?"]),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "It is noon."},
    ]
    assert learned(LLAMA3, messages, tools=[{"name": "clock"}]) == ['{"name": "clock", "arguments": {"zone": "utc"}}<|end|>It is noon.<|end|>']


def test_what_a_template_refuses_names_the_record():
    with pytest.raises(Pard2Error, match="record r1: the chat template failed: System role not supported"):
        learned(GEMMA, [{"role": "system", "content": "Be brief."}, *turns(PLAIN)])
    with pytest.raises(Pard2Error, match="record r1: the chat template failed: Roles must alternate"):
        learned(GEMMA, [*turns(PLAIN[:1]), *turns(PLAIN[:2])])
