"""Rows of the formats in use to one form of record: OpenAI `messages`, ShareGPT `conversations`, plain `text`.

It does not know where a row comes from, nor what a chat template makes of it.
"""

import json
from typing import Any

from pard2.errors import Pard2Error

# `id` and either `messages` or `text`; perhaps `tools` and `chat_template_kwargs`, which the chat template gets. Other keys are carried along.
Record = dict[str, Any]
# `role` and `content`, a text; None only where an assistant calls tools. Other keys (`tool_calls`, `name`, ...) are the chat template's.
Message = dict[str, Any]

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}


def to_record(row: Any, where: str) -> Record:
    """The row as a record; `where` (`file:line`) is what errors call it, and its id if it has none.

    Raises `Pard2Error` for a row without one of the three columns, and for turns that are no text.
    """
    if not isinstance(row, dict):
        raise Pard2Error(f"{where} has no `messages`: it is not an object")
    record = dict(row)
    # Without the folder, so that a run resumed from elsewhere knows its records again.
    record["id"] = where.rpartition("/")[2] if row.get("id") is None else str(row["id"])
    if row.get("messages") is not None:
        turns = row["messages"]
    elif row.get("conversations") is not None:
        turns = record.pop("conversations")
    elif isinstance(row.get("text"), str) and row["text"]:
        return record
    else:
        raise Pard2Error(f"{where} has no `messages`, `conversations` or `text`; it has {', '.join(map(str, row)) or 'nothing'}")
    if not isinstance(turns, list) or not turns:
        raise Pard2Error(f"{where} has no `messages`: a list of objects with `role` and `content` is needed")
    record["messages"] = [_message(turn, f"{where}: message {number}") for number, turn in enumerate(turns, 1)]
    if isinstance(record.get("system"), str) and record["system"] and record["messages"][0]["role"] != "system":
        record["messages"].insert(0, {"role": "system", "content": record.pop("system")})  # a column of its own in some ShareGPT files
    for column, kind in (("tools", list), ("chat_template_kwargs", dict)):
        if record.get(column) is not None:
            record[column] = _decoded(record[column])
            if not isinstance(record[column], kind):
                raise Pard2Error(f"{where}: `{column}` is not a JSON {'list' if kind is list else 'object'}")
    return record


def template_arguments(record: Record) -> dict[str, Any]:
    """What the chat template gets beside the messages: the record's `tools` and its `chat_template_kwargs`."""
    tools = record.get("tools") or None
    return {**({"tools": tools} if tools else {}), **(record.get("chat_template_kwargs") or {})}


def up_to_user(record: Record) -> list[Message]:
    """A record's messages up to its last user turn, which is what is left to answer; empty if no user speaks."""
    messages = list(record.get("messages", ()))
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    return messages


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise Pard2Error(f"{where} of `messages` is not an object with `role` and `content`")
    if "from" in turn and "role" not in turn:
        return _sharegpt_message(turn, where)
    message = {key: value for key, value in turn.items() if value is not None or key == "content"}  # in columns, what is absent is null
    if not isinstance(message.get("role"), str):
        raise Pard2Error(f"{where} of `messages` has no `role`")
    content = message.get("content")
    if isinstance(content, list):
        content = _joined(content, where)
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [_tool_call(call, where) for call in calls]
    elif not isinstance(content, str):
        raise Pard2Error(f"{where} of `messages` has no `content` text")
    return {**message, "content": content}


def _joined(parts: list[Any], where: str) -> str:
    """The text of `[{"type": "text", "text": ...}]`."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Pard2Error(f"{where} holds a part of type {kind!r}; only text can be learned")
    return "".join(part["text"] for part in parts)


def _sharegpt_message(turn: dict[str, Any], where: str) -> Message:
    role, value = turn["from"], turn.get("value")
    if role not in _SHAREGPT_ROLES:
        raise Pard2Error(f"{where} is from {role!r}; known are {', '.join(_SHAREGPT_ROLES)}")
    if not isinstance(value, str):
        raise Pard2Error(f"{where} has no `value` text")
    if role != "function_call":
        return {"role": _SHAREGPT_ROLES[role], "content": value}
    calls = _decoded(value)
    calls = calls if isinstance(calls, list) else [calls]
    return {"role": "assistant", "content": None, "tool_calls": [_tool_call(call, where) for call in calls]}


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """In OpenAI's form. Its arguments become an object, as engines hand them to a template: a text would be quoted twice."""
    if isinstance(call, dict) and "function" not in call:
        call = {"type": "function", "function": call}
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Pard2Error(f"{where} holds a tool call that is not an object with `name` and `arguments`")
    return {**call, "function": {**function, "arguments": _decoded(function.get("arguments") or {})}}


def _decoded(value: Any) -> Any:
    """What a JSON text says; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
