"""Formats of rows: texts and speakers stay the same, and what cannot be read names its location."""

import json

import pytest

from pard2.data.conversations import template_arguments, to_record, up_to_user
from pard2.errors import Pard2Error


def messages(row):
    return to_record(row, "dir/f.jsonl:7")["messages"]


def test_sharegpt_becomes_messages_and_other_columns_are_carried_along():
    turns = [("system", "s"), ("human", "u"), ("gpt", "a"), ("observation", "o"), ("tool", "t")]
    record = to_record({"conversations": [{"from": who, "value": what} for who, what in turns], "source": "x"}, "dir/f.jsonl:7")
    assert [(m["role"], m["content"]) for m in record["messages"]] == [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "a"),
        ("tool", "o"),
        ("tool", "t"),
    ]
    assert record["source"] == "x" and record["id"] == "f.jsonl:7" and "conversations" not in record


def test_a_sharegpt_call_is_a_tool_call():
    call = json.dumps({"name": "clock", "arguments": {"zone": "utc"}})
    (made,) = messages({"conversations": [{"from": "function_call", "value": call}]})
    assert made == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "utc"}}}],
    }


def test_conversations_with_roles_and_messages_with_from_are_read():
    """Both columns are found with either kind of turn."""
    turn = {"role": "user", "content": "u"}
    assert messages({"conversations": [turn]}) == messages({"messages": [{"from": "human", "value": "u"}]}) == [turn]


def test_a_system_column_comes_first_unless_there_is_a_system_message():
    """Left out, the draft would learn answers to an instruction that it never sees."""
    turn = {"from": "human", "value": "u"}
    assert messages({"system": "s", "conversations": [turn]})[0] == {"role": "system", "content": "s"}
    assert len(messages({"system": "s", "conversations": [{"from": "system", "value": "t"}, turn]})) == 2
    assert len(messages({"system": "", "conversations": [turn]})) == 1


def test_text_parts_are_joined_and_pictures_refused():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages({"messages": [{"role": "user", "content": parts}]}) == [{"role": "user", "content": "ab"}]
    with pytest.raises(Pard2Error, match="f.jsonl:7: message 1 holds a part of type 'image_url'; only text can be learned"):
        messages({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})


def test_arguments_of_tool_calls_are_objects():
    """Templates write them as JSON, and a text that is JSON already would be quoted twice."""
    for arguments in ('{"zone": null}', {"zone": None}):
        call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": arguments}}
        (made,) = messages({"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]})
        assert made["tool_calls"] == [{"id": "1", "type": "function", "function": {"name": "clock", "arguments": {"zone": None}}}]
        assert made["content"] is None


def test_null_columns_of_a_message_are_absent():
    """A template that asks whether there are tool calls would find some."""
    turn = {"role": "user", "content": "u", "tool_calls": None, "name": None}
    assert messages({"messages": [turn], "conversations": None, "text": None}) == [{"role": "user", "content": "u"}]


def test_tools_and_template_arguments_may_be_json_texts():
    tools, off = [{"name": "clock"}], {"enable_thinking": False}
    turns = [{"role": "user", "content": "u"}]
    for row in ({"tools": tools, "chat_template_kwargs": off}, {"tools": json.dumps(tools), "chat_template_kwargs": json.dumps(off)}):
        assert template_arguments(to_record({"messages": turns, **row}, "f:1")) == {"tools": tools, **off}
    assert template_arguments(to_record({"messages": turns, "tools": [], "chat_template_kwargs": None}, "f:1")) == {}


def test_a_plain_text_is_a_record_without_messages():
    record = to_record({"text": "once"}, "f:1")
    assert record == {"text": "once", "id": "f:1"} and up_to_user(record) == []
    assert "messages" in to_record({"text": "once", "messages": [{"role": "user", "content": "u"}]}, "f:1")


def test_the_given_row_stays_as_it_was():
    row = {"system": "s", "conversations": [{"from": "human", "value": "u"}]}
    before = json.dumps(row)
    to_record(row, "f:1")
    assert json.dumps(row) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "has no `messages`: it is not an object"),
        ({"prompt": "u"}, "has no `messages`, `conversations` or `text`; it has prompt"),
        ({"text": ""}, "has no `messages`, `conversations` or `text`; it has text"),
        ({"messages": "hi"}, "has no `messages`: a list of objects"),
        ({"messages": [{"content": "u"}]}, "message 1 of `messages` has no `role`"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "user", "content": None}]}, "message 2 of `messages` has no `content` text"),
        ({"messages": [{"role": "user", "content": 1}]}, "message 1 of `messages` has no `content` text"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": ["x"]}]}, "message 1 holds a tool call that is not an object"),
        ({"conversations": [{"from": "alien", "value": "u"}]}, "message 1 is from 'alien'; known are system, human"),
        ({"conversations": [{"from": "human", "value": None}]}, "message 1 has no `value` text"),
        ({"conversations": [{"from": "function_call", "value": "now"}]}, "message 1 holds a tool call that is not an object"),
        ({"messages": [{"role": "user", "content": "u"}], "tools": "clock"}, "`tools` is not a JSON list"),
        ({"messages": [{"role": "user", "content": "u"}], "chat_template_kwargs": [1]}, "`chat_template_kwargs` is not a JSON object"),
    ],
)
def test_what_cannot_be_read_names_its_place(row, message):
    with pytest.raises(Pard2Error, match="dir/f.jsonl:7") as info:
        to_record(row, "dir/f.jsonl:7")
    assert message in str(info.value) and "\n" not in str(info.value)
