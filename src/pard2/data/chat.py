"""Conversations to tokens: the chat template, and which tokens the draft is trained to predict.

Each stretch of text up to an assistant's answer is tokenised on its own, exactly as decoding
tokenises a prompt, so training and decoding see the same ids. No generation markers are needed in
the template: an answer is the difference of two renderings.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase as Tokenizer

from pard2.data.records import Message, Record
from pard2.errors import Pard2Error, first_line


@dataclass(frozen=True)
class Example:
    """One tokenised conversation: `token_ids` [L] and `predicted` [L], True where the draft must predict the token."""

    id: str
    token_ids: list[int]
    predicted: list[bool]


def prompt_text(tokenizer: Tokenizer, messages: list[Message]) -> str:
    """The template's text up to where the assistant starts to answer."""
    return _render(tokenizer, messages, add_generation_prompt=True)


def prompt_ids(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    return encode(tokenizer, prompt_text(tokenizer, messages))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that already holds its special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _render(tokenizer: Tokenizer, messages: list[Message], add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise Pard2Error("the tokenizer has no chat template; give raw text (--raw) or a chat model")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise Pard2Error(f"the chat template failed: {first_line(error)}") from None


def user_turn_text(tokenizer: Tokenizer) -> str:
    """The template's text up to where a user starts to speak, from which a chat model writes the user's part itself."""
    marker = "\u2402MARK\u2403"
    rendered = _render(tokenizer, [{"role": "user", "content": marker}], add_generation_prompt=False)
    if marker not in rendered:
        raise Pard2Error("the chat template does not show the user's text; synthesize needs a chat model")
    return rendered.split(marker)[0]


def tokenize_conversation(tokenizer: Tokenizer, record: Record, eos_token_ids: frozenset[int], max_length: int) -> Example:
    """Tokens and loss mask of a conversation.

    Every assistant turn is predicted, from its first token to its end-of-turn token; what the
    template writes after that token is context only. An answer that was cut by its length limit
    (`finish_reason: length`) has no end-of-turn token to learn. The example is cut at `max_length`.

    Raises `Pard2Error`, naming the record, if no token is left to predict or the template rewrites
    earlier turns.
    """
    messages = record["messages"]
    token_ids: list[int] = []
    predicted: list[bool] = []
    seen = ""

    def append(text: str, answer: bool) -> None:
        ids = encode(tokenizer, text)
        ends = [i for i, token in enumerate(ids) if token in eos_token_ids]
        stop = (ends[0] + 1 if ends else len(ids)) if answer else 0
        token_ids.extend(ids)
        predicted.extend(i < stop for i in range(len(ids)))

    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:index], add_generation_prompt=True)
        after = _render(tokenizer, messages[: index + 1], add_generation_prompt=False)
        if not before.startswith(seen) or not after.startswith(before):
            raise Pard2Error(f"record {record['id']}: the chat template rewrites earlier turns, so its answers cannot be told apart")
        append(before[len(seen) :], answer=False)
        cut = record.get("finish_reason") == "length" and index == len(messages) - 1
        append(message["content"] if cut else after[len(before) :], answer=True)
        seen = after
    token_ids, predicted = token_ids[:max_length], predicted[:max_length]
    if not any(predicted):
        raise Pard2Error(f"record {record['id']}: no token to predict within {max_length} tokens (no assistant answer, or a prompt too long)")
    return Example(record["id"], token_ids, predicted)
