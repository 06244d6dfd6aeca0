"""From what a caller calls a prompt to token ids that the target can read."""

from collections.abc import Iterable
from typing import Any

from pard2.data.chat import check_ids, prompt_text
from pard2.data.conversations import Message, Record, template_arguments, to_record
from pard2.errors import Pard2Error
from pard2.models.target import Target
from pard2.reading import check_text

# A dict holds `messages`, and perhaps `tools` and `chat_template_kwargs`, which the chat template gets.
Prompt = str | list[Message] | list[int] | Record


class PromptTooLong(Pard2Error):
    """More tokens than the target reads."""


_WRAP = "the token ids of a single prompt are wrapped in [...]"


def as_list(prompts: Prompt | Iterable[Prompt]) -> list[Any]:
    """The prompts, not yet looked at; a text, a conversation or a dict is one of them.

    Raises `Pard2Error` for what holds none. Token ids are taken for prompts, and refused as such later.
    """
    single = isinstance(prompts, list) and prompts and isinstance(prompts[0], dict) and "messages" not in prompts[0]
    if single or isinstance(prompts, (str, dict)):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise Pard2Error(f"`prompts` is a text, a conversation or a list of them, and not {type(prompts).__name__}")
    return list(prompts)


def encode_prompt(target: Target, prompt: Prompt, raw: bool = False) -> list[int]:
    """Token ids of a text, a list of messages, a dict of `messages`, or a list of token ids
    (then no tokenizer is needed).

    raw: take a text as it is, in place of a user's turn in the chat template. What the caller changes
        later does not matter. Raises `Pard2Error` for what is none of these, and for a prompt that is
        empty, longer than the target's context, or holds ids that the target does not know, be it
        that its tokenizer makes them.
    """
    if not isinstance(prompt, (str, list, dict)):
        raise Pard2Error(f"a prompt is a text, a list of messages or a list of token ids, and not {_kind(prompt)}; {_WRAP}")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise Pard2Error("the prompt is empty; say something with `prompt`")
    ids = list(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], dict) else _tokenize(target, prompt, raw)
    if wrong := [i for i in ids if not isinstance(i, int) or isinstance(i, bool)]:
        raise Pard2Error(f"the prompt holds {_kind(wrong[0])} ({str(wrong[0])[:40]!r}); token ids are whole numbers (int), messages dicts")
    check_ids(ids, target.vocab_size, "the prompt", repr(target.name))
    if len(ids) > target.context_length:
        raise PromptTooLong(f"the prompt has {len(ids)} tokens, the context of {target.name!r} is {target.context_length}; shorten the prompt")
    return ids


def _tokenize(target: Target, prompt: Prompt, raw: bool) -> list[int]:
    if isinstance(prompt, dict) and "messages" not in prompt:
        raise Pard2Error("a prompt that is a dict needs `messages`; a single message is wrapped in [...]")
    if target.tokenizer is None:
        raise Pard2Error(f"{target.name!r} has no tokenizer; give the prompt as token ids")
    if isinstance(prompt, str) and raw:
        text = prompt
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        record = to_record(messages if isinstance(messages, dict) else {"messages": messages}, "the prompt")
        text = prompt_text(target.tokenizer, record["messages"], template_arguments(record))
    try:
        check_text(text)
    except ValueError as error:
        raise Pard2Error(f"the prompt {error}") from None
    # A text that no template has made begins with the special tokens that the model expects, such as BOS.
    return list(target.tokenizer(text, add_special_tokens=isinstance(prompt, str) and raw, verbose=False)["input_ids"])


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
