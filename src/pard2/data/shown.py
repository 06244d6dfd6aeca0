"""What an assistant's message holds, and whether a template's text shows all of it."""

import json
import re

from pard2.data.conversations import LEARNED_MARKS, Message
from pard2.errors import Pard2Error

OPEN, CLOSE = "<think>", "</think>"
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def is_context(message: Message, where: str) -> bool:
    """Whether the message is marked as not to be learned.

    where: what errors call the message.

    Raises `Pard2Error` for a mark of another value.
    """
    marks = {mark: message[mark] for mark in LEARNED_MARKS if message.get(mark) is not None}
    for mark, value in marks.items():
        if value not in (0, 1):
            raise Pard2Error(f"{where}: `{mark}` is {json.dumps(value)}; known are 1 or true (learned) and 0 or false (context only)")
    return 0 in marks.values()


def is_empty(message: Message) -> bool:
    return not ((message["content"] or "").strip() or message.get("tool_calls") or _thoughts(message))


def spoken(message: Message, prompt: str) -> str | None:
    """What a thinking target generates after this prompt, up to its end of turn.

    Thoughts stand between `<think>` and `</think>`, the first of which may be part of the prompt already.
    None for a message without thoughts, and for a prompt that closes them.
    """
    content, thoughts = message["content"] or "", _thoughts(message)
    if thoughts and CLOSE not in content:
        content = f"{OPEN}\n{thoughts}\n{CLOSE}\n\n{content.lstrip()}"
    if message.get("tool_calls") or CLOSE not in content or prompt.rstrip().endswith(CLOSE):
        return None
    if prompt.rstrip().endswith(OPEN):
        content = content.lstrip().removeprefix(OPEN)
        content = content.lstrip("\n") if prompt.endswith("\n") else content
    return content.rstrip()


def unshown(message: Message, prompt: str, answer: str) -> str | None:
    """What of a message the answer lacks: `thoughts`, `text` or `tool calls`; None if it shows all.

    White space is not compared.

    prompt, answer: the template's text up to the message, and after that.
    """
    content, thoughts, calls = message["content"] or "", _thoughts(message), message.get("tool_calls")
    if not thoughts and not calls and content.strip() in answer:
        return None
    shown = _bare((OPEN if prompt.rstrip().endswith(OPEN) else "") + answer)
    if _bare(content) not in shown:
        return "thoughts" if CLOSE in content and _bare(content.rpartition(CLOSE)[2]) in shown else "text"
    if _bare(thoughts) not in shown:
        return "thoughts"
    # Calls are written as JSON, XML, Python, ..: the words of names and values are the same in all, except
    # for escapes and the name of null.
    functions = [call["function"] for call in calls or ()]
    said = re.sub(r"\\(u....|.)", " ", json.dumps([[one["name"], one["arguments"]] for one in functions], default=str))
    return None if all(word in shown.lower() for word in re.findall(r"\w+", said.lower()) if word != "null") else "tool calls"


def _thoughts(message: Message) -> str:
    return next((message[key].strip() for key in _THOUGHTS if isinstance(message.get(key), str) and message[key].strip()), "")


def _bare(text: str) -> str:
    return "".join(text.split())
