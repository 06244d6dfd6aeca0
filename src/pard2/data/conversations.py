"""Conversations of the common formats brought to one form: records.

Formats: OpenAI `messages`, ShareGPT `conversations`, a question with its answer, plain `text`. This module
does not know where a row comes from, nor what a chat template makes of it.
"""

from typing import Any

from pard2.data.sources import ROW_FORM
from pard2.errors import Pard2Error
from pard2.reading import parse_json

# `id` and either `messages` or `text`; perhaps `tools` and `chat_template_kwargs`, which the chat template
# gets. Other keys are kept unchanged.
Record = dict[str, Any]
# `role`, and `content`, a text; None only where an assistant calls tools. Other keys (`tool_calls`, `name`,
# ...) are for the chat template.
Message = dict[str, Any]

# Keys of an answered record: see `pard2.data.emitted`.
EMITTED_IDS, EMITTED_HASH = "completion_token_ids", "completion_hash"
# Keys of an assistant's message; 0 or false makes it context only.
LEARNED_MARKS = ("weight", "train", "loss_mask")

# Characters of a conversation, about two million tokens. No model reads more, and tokenising it only to find
# this out would take minutes.
LONGEST = 2**23

# Compared in lower case. A template would take `Assistant` or `model` for another speaker, and the answers
# for context.
_SPEAKERS = {"system": "system", "human": "user", "user": "user"}
_SPEAKERS |= dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot", "ai"), "assistant")
_SHAREGPT_ROLES = _SPEAKERS | {"function_call": "assistant"} | dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool")
# Columns of a question, of an addition to it, and of its answer.
_PAIRS = (("instruction", "input", "output"), ("prompt", "", "completion"), ("question", "", "answer"))
_UNREAD = ("chosen", "rejected", "history")  # an error: ignoring them would lose what the user meant to train on


def to_record(row: Any, where: str) -> Record:
    """The row as a record.

    Of several usable columns the first of `messages`, `conversations`, a question with its answer, and `text`
    is read.

    where: `file:line`, what errors call the row, and its id if it has none.

    Raises `Pard2Error` for a row without any such column, for turns that are not text, and for more than
    `LONGEST` characters.
    """
    if not isinstance(row, dict):
        raise Pard2Error(f"{where} has no `messages`: it is not an object such as {ROW_FORM}")
    record = dict(row)
    if isinstance(row.get("id"), (dict, list)):
        raise Pard2Error(f"{where}: `id` is neither a text nor a number")
    # Without the folder, so that a run resumed from another directory recognises its records. A file's name
    # need not be Unicode.
    name = where.rpartition("/")[2].encode(errors="backslashreplace").decode()
    record["id"] = name if row.get("id") is None else str(row["id"])
    turns = _turns(record, where)
    if turns is not None:
        if not isinstance(turns, list) or not turns:
            raise Pard2Error(f"{where} has no `messages`: a list of objects with `role` and `content` is needed")
        record["messages"] = [_message(turn, f"{where}: message {number}") for number, turn in enumerate(turns, 1)]
    characters = len(record["text"]) if turns is None else sum(len(message["content"] or "") for message in record["messages"])
    if characters > LONGEST:
        raise Pard2Error(f"{where} holds {characters:,} characters, more than {LONGEST:,}, which no model reads at once; cut it into several")
    if turns is None:
        return record
    if isinstance(record.get("system"), str) and record["system"] and record["messages"][0]["role"] != "system":
        # some ShareGPT files have a column for it
        record["messages"].insert(0, {"role": "system", "content": record.pop("system")})
    for column, kind in (("tools", list), ("chat_template_kwargs", dict)):
        if record.get(column) is not None:
            record[column] = _decoded(record[column], where)
            if not isinstance(record[column], kind):
                raise Pard2Error(f"{where}: `{column}` is not a JSON {'list' if kind is list else 'object'}")
    return record


def _turns(record: Record, where: str) -> Any:
    """The turns that a column of the record holds; the column is removed. None for a plain text."""
    for column in ("messages", "conversations"):
        if record.get(column) is not None:
            return _decoded(record.pop(column), where)
    for question, more, answer in _PAIRS:
        if record.get(question) and answer in record:
            asked, added, answered = record.pop(question), record.pop(more, None), record.pop(answer)
            if added:
                asked = [{"type": "text", "text": asked}, {"type": "text", "text": "\n\n"}, {"type": "text", "text": added}]
            return _said("user", asked) + (_said("assistant", answered) if answered else [])
    unread = [column for column in _UNREAD if record.get(column)]
    if unread or not isinstance(record.get("text"), str) or not record["text"]:
        what = f"`{unread[0]}` is not read" if unread else f"it has {', '.join(str(key) for key in record if key != 'id') or 'nothing'}"
        raise Pard2Error(f"{where} has no `messages`, `conversations` or `text`; {what}; a row looks like {ROW_FORM}")
    return None


def _said(role: str, said: Any) -> list[Any]:
    """A question or an answer as turns; it may be a list of turns already."""
    turns = isinstance(said, list) and said and isinstance(said[0], dict) and "role" in said[0]
    return said if turns else [{"role": role, "content": said}]


def template_arguments(record: Record) -> dict[str, Any]:
    """The chat template's arguments beside the messages: the record's `tools` and `chat_template_kwargs`."""
    tools = record.get("tools") or None
    return {**({"tools": tools} if tools else {}), **(record.get("chat_template_kwargs") or {})}


def up_to_user(record: Record) -> list[Message]:
    """A record's messages up to its last user turn, the prompt; empty if no user speaks."""
    messages = list(record.get("messages", ()))
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    return messages


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise Pard2Error(f"{where} of `messages` is not an object with `role` and `content`")
    if "from" in turn and "role" not in turn:
        return _sharegpt_message(turn, where)
    # in tables, an absent key is null
    message = {key: value for key, value in turn.items() if value is not None or key == "content"}
    role = message.get("role")
    if not isinstance(role, str):
        raise Pard2Error(f"{where} of `messages` has no `role`")
    message["role"] = _SPEAKERS.get(role.lower(), role)
    content = message.get("content")
    if isinstance(content, list):
        content = _joined(content, where)
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise Pard2Error(f"{where} of `messages` has `tool_calls` that are no list")
        message["tool_calls"] = [_tool_call(call, where) for call in calls]
    if not isinstance(content, str) and (content is not None or not calls):
        raise Pard2Error(f"{where} of `messages` has no `content` text")
    return {**message, "content": content}


def _joined(parts: list[Any], where: str) -> str:
    """The text of `[{"type": "text", "text": ...}]`."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Pard2Error(f"{where} holds a part of type {kind!r}; only text can be learned, as in {ROW_FORM}")
    return "".join(part["text"] for part in parts)


def _sharegpt_message(turn: dict[str, Any], where: str) -> Message:
    role, value = turn["from"], turn.get("value")
    role = role.lower() if isinstance(role, str) else None
    if role not in _SHAREGPT_ROLES:
        raise Pard2Error(f"{where} is from {turn['from']!r}; known are {', '.join(_SHAREGPT_ROLES)}")
    if not isinstance(value, str):
        raise Pard2Error(f"{where} has no `value` text")
    marks = {mark: turn[mark] for mark in LEARNED_MARKS if mark in turn}
    if role != "function_call":
        return {"role": _SHAREGPT_ROLES[role], "content": value} | marks
    calls = _decoded(value, where)
    calls = calls if isinstance(calls, list) else [calls]
    return {"role": "assistant", "content": None, "tool_calls": [_tool_call(call, where) for call in calls]} | marks


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """A call in OpenAI's form. Its arguments become an object: a template would quote a text twice."""
    if isinstance(call, dict) and "function" not in call:
        call = {"type": "function", "function": call}
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Pard2Error(f"{where} holds a tool call that is not an object with `name` and `arguments`")
    return {**call, "function": {**function, "arguments": _decoded(function.get("arguments") or {}, where)}}


def _decoded(value: Any, where: str) -> Any:
    """The value of a JSON text. Any other value, and a text that is not JSON, is returned unchanged."""
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError as error:
        if str(error).startswith("is not JSON"):
            return value
        raise Pard2Error(f"{where} {error}") from None
