"""Arguments of a chat template beside the messages, and whether it reads them: others have no effect."""

import difflib
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pard2.data.conversations import Message, Record, template_arguments, up_to_user
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Arguments = dict[str, Any]

_GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
# A tag of transformers' own, which Jinja does not know.
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")


def with_arguments(record: Record, arguments: Arguments | None) -> Record:
    """The record with these `chat_template_kwargs` in addition to its own, which have precedence."""
    return record | {"chat_template_kwargs": arguments | (record.get("chat_template_kwargs") or {})} if arguments else record


def to_prompt(record: Record, arguments: Arguments | None = None) -> list[Message] | Record:
    """A record's messages up to its last user turn; with the chat template's arguments, if there are any."""
    asked = with_arguments(record, arguments)
    more = {key: asked[key] for key in ("tools", "chat_template_kwargs") if asked.get(key)}
    return {"messages": up_to_user(record), **more} if more else up_to_user(record)


def to_prompts(records: Iterable[Record], arguments: Arguments | None, source: str) -> list[list[Message] | Record]:
    """Each record as `to_prompt` returns it.

    source: what errors call the records, a parameter and its file.

    Raises `Pard2Error` for a record in which no user speaks.
    """
    prompts = []
    for record in records:
        if not up_to_user(record):
            raise Pard2Error(f"{source}: record {record['id']} has no user message")
        prompts.append(to_prompt(record, arguments))
    return prompts


def distinct_arguments(prompts: Iterable[Any]) -> list[Arguments]:
    """The different `chat_template_kwargs` of records, or of prompts in any form."""
    found = [prompt.get("chat_template_kwargs") or {} if isinstance(prompt, dict) else {} for prompt in prompts]
    return list({json.dumps(one, sort_keys=True, default=str): one for one in found}.values())


def unread_arguments(tokenizer: "Tokenizer", record: Record) -> list[str]:
    """Names of the record's arguments that the chat template does not read."""
    given = template_arguments(record)
    return sorted(given.keys() - _read(template_source(tokenizer))) if given else []


def check_arguments(tokenizer: "Tokenizer", arguments: Arguments | None) -> None:
    """Raises `Pard2Error` for an argument that the chat template does not read or a user may not set."""
    read = _read(template_source(tokenizer))
    for name in arguments or ():
        if name not in read or name in _GIVEN - {"documents"}:
            free = sorted(one for one in read - _GIVEN if not one.endswith("_token"))
            near = ", ".join(difflib.get_close_matches(name, free, n=3))
            what = f"did you mean {near}?" if near else f"it reads {', '.join(free) or 'none'}"
            raise Pard2Error(f"`template_arguments` {name} (data.chat_template_kwargs): the chat template reads no such argument; {what}")


def template_source(tokenizer: "Tokenizer") -> str:
    """The chat template as its author wrote it; several are concatenated."""
    template = tokenizer.chat_template or ""
    return "".join(template.values()) if isinstance(template, dict) else template


def check_template(source: str, where: str) -> None:
    """Raises `Pard2Error` for a template that does not compile. where: what the error calls it."""
    from jinja2 import TemplateSyntaxError

    try:
        _undeclared(source)
    except TemplateSyntaxError as error:
        raise Pard2Error(f"{where} is no template that compiles: line {error.lineno}: {error.message}") from None
    if not source.strip():
        raise Pard2Error(f"{where} is an empty template")


@lru_cache(maxsize=16)
def _read(source: str) -> frozenset[str]:
    """Names that a template reads and does not set itself."""
    from jinja2 import TemplateSyntaxError

    try:
        return _undeclared(source)
    except TemplateSyntaxError:  # rendering reports it
        return frozenset()


def _undeclared(source: str) -> frozenset[str]:
    from jinja2 import Environment, meta

    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    return frozenset(meta.find_undeclared_variables(environment.parse(_GENERATION.sub("", source))))
