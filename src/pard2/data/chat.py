"""Conversations to tokens: the chat template, and which tokens the draft is trained to predict.

No generation markers are needed in the template: an answer is the difference of two renderings, that of the conversation up to the
answer and that of the answer with it. A prompt is tokenised as decoding tokenises it, and its answer follows it token by token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from pard2.data.conversations import Message, Record, template_arguments
from pard2.errors import Pard2Error, first_line


@dataclass(frozen=True)
class Example:
    """Tokens to learn from: `token_ids` [L] and `predicted` [L], True where the draft must predict the token."""

    id: str
    token_ids: list[int]
    predicted: list[bool]


def prompt_text(tokenizer: Tokenizer, messages: list[Message], arguments: dict[str, Any] | None = None) -> str:
    """The template's text up to where the assistant starts to answer. arguments: `template_arguments` of a record."""
    return _render(tokenizer, messages, arguments or {}, add_generation_prompt=True)


def prompt_ids(tokenizer: Tokenizer, messages: list[Message], arguments: dict[str, Any] | None = None) -> list[int]:
    return encode(tokenizer, prompt_text(tokenizer, messages, arguments))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that already holds its special tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def check_ids(token_ids: list[int], vocab_size: int, where: str, model: str) -> None:
    """Raises `Pard2Error` for no ids, and for one that a model of `vocab_size` embeddings lacks, as that of a token added to its tokenizer alone."""
    if not token_ids:
        raise Pard2Error(f"{where} is empty: what the chat template or the tokenizer makes of it holds no token")
    if wrong := [i for i in token_ids if not 0 <= i < vocab_size]:
        resize = "where a token was added to its tokenizer, resize its embedding, too (resize_token_embeddings)"
        raise Pard2Error(f"{where} holds token id {wrong[0]}; {model} knows 0 to {vocab_size - 1}; {resize}")


def _render(tokenizer: Tokenizer, messages: list[Message], arguments: dict[str, Any], add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise Pard2Error("the tokenizer has no chat template; give raw text (--raw, or rows of `text`) or a chat model")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt, **arguments)
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise Pard2Error(f"the chat template failed: {first_line(error)}") from None


def user_turn_text(tokenizer: Tokenizer) -> str:
    """The template's text up to where a user starts to speak, from which a chat model writes the user's part itself."""
    marker = "\u2402MARK\u2403"
    rendered = _render(tokenizer, [{"role": "user", "content": marker}], {}, add_generation_prompt=False)
    if marker not in rendered:
        raise Pard2Error("the chat template does not show the user's text; synthesize needs a chat model")
    return rendered.split(marker)[0]


@dataclass(frozen=True)
class _Turn:
    """An assistant's turn: the text that decoding starts from, and the text with the answer behind it."""

    prompt: str
    answered: str

    @property
    def answer(self) -> str:
        return self.answered[len(self.prompt) :]


def tokenize_record(tokenizer: Tokenizer, record: Record, eos_token_ids: frozenset[int]) -> list[Example]:
    """As `tokenize_records`, for one."""
    return tokenize_records(tokenizer, [record], eos_token_ids)[0]


def tokenize_records(tokenizer: Tokenizer, records: list[Record], eos_token_ids: frozenset[int]) -> list[list[Example]]:
    """Tokens and loss mask of each record, whatever their length. Many at once are tokenised twice as fast as one by one.

    Every assistant turn is predicted, from its first token to its end-of-turn token; what the template writes after that token is context
    only. An answer that was cut by its length limit (`finish_reason: length`) has no end-of-turn token to learn.

    A conversation is one example, in which every answer stands behind exactly the tokens that decoding would have read before it. Where
    that cannot be, because the template shows earlier turns otherwise than the last one (thoughts left out, say) or tokens reach over a
    turn's border, each of its assistant turns is an example, `id#1`, `id#2`, ... In a plain `text`, all tokens but the first are predicted.

    Raises `Pard2Error`, naming the record, if the template fails or an answer has no token to predict.
    """
    turns = [None if "messages" not in record else _turns(tokenizer, record) for record in records]
    texts = sorted({text for some in turns if some for text in _texts(some)})
    known = dict(zip(texts, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [], strict=True))

    def ids_of(text: str) -> list[int]:
        return known[text] if text in known else encode(tokenizer, text)

    ends = [tokenizer.convert_ids_to_tokens(token) for token in eos_token_ids]
    made = []
    for record, some in zip(records, turns, strict=True):
        if some is None:
            made.append([_plain_text(tokenizer, record)])
        else:
            whole = _together(record["id"], some, ids_of, eos_token_ids, [e for e in ends if e])
            made.append([whole] if whole else _apart(record["id"], some, ids_of, eos_token_ids))
    return made


def _one_text(turns: list[_Turn]) -> bool:
    """Whether each turn's text is the beginning of the last one's."""
    whole = turns[-1].answered
    return all(whole.startswith(turn.answered) and turn.answered.startswith(turn.prompt) for turn in turns)


def _texts(turns: list[_Turn]) -> list[str]:
    """What will be tokenised for sure."""
    return [turn.prompt for turn in turns] + [turn.answered for turn in (turns[-1:] if _one_text(turns) else turns)]


def _plain_text(tokenizer: Tokenizer, record: Record) -> Example:
    token_ids = tokenizer(record["text"], verbose=False)["input_ids"]  # with the special tokens that the model expects, such as BOS
    if len(token_ids) < 2:
        raise Pard2Error(f"record {record['id']}: no token to predict: the text is {len(token_ids)} tokens long")
    return Example(record["id"], token_ids, [False] + [True] * (len(token_ids) - 1))


def _turns(tokenizer: Tokenizer, record: Record) -> list[_Turn]:
    messages, arguments = record["messages"], template_arguments(record)
    turns = []
    try:
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or index == 0:  # a greeting answers nothing: decoding never begins there
                continue
            prompt = _render(tokenizer, messages[:index], arguments, add_generation_prompt=True)
            cut = record.get("finish_reason") == "length" and index == len(messages) - 1
            # The template would end an answer that did not end.
            answered = prompt + (message["content"] or "") if cut else _render(tokenizer, messages[: index + 1], arguments, False)
            turns.append(_Turn(prompt, answered))
    except Pard2Error as error:
        raise Pard2Error(f"record {record['id']}: {error}") from None
    if not turns:
        raise Pard2Error(f"record {record['id']}: no token to predict: no assistant message answers another")
    return turns


def _together(
    record_id: str, turns: list[_Turn], ids_of: Callable[[str], list[int]], eos_token_ids: frozenset[int], ends: list[str]
) -> Example | None:
    """The conversation as one example; None if decoding would have read something else before any of its answers."""
    if not _one_text(turns):
        return None
    token_ids = ids_of(turns[-1].answered)
    predicted = [False] * len(token_ids)
    for number, turn in enumerate(turns, 1):
        prompt = ids_of(turn.prompt)
        if token_ids[: len(prompt)] != prompt:
            return None
        stop = len(token_ids)
        if turn is not turns[-1] and not any(end in turn.answer for end in ends):
            answered = ids_of(turn.answered)
            if token_ids[: len(answered)] != answered:
                return None
            stop = len(answered)
        _predict(predicted, token_ids, len(prompt), stop, eos_token_ids)
        if len(prompt) == stop:
            raise _nothing_to_predict(record_id, number)
    return Example(record_id, token_ids, predicted)


def _apart(record_id: str, turns: list[_Turn], ids_of: Callable[[str], list[int]], eos_token_ids: frozenset[int]) -> list[Example]:
    """Each assistant turn as an example of its own, exactly as decoding sees it."""
    examples = []
    for number, turn in enumerate(turns, 1):
        if not turn.answered.startswith(turn.prompt):
            raise Pard2Error(
                f"record {record_id}: the chat template does not show answer {number} where decoding begins it, after "
                f"{turn.prompt[-20:]!r}, so it cannot be told apart; does the record want `chat_template_kwargs`?"
            )
        prompt, token_ids = ids_of(turn.prompt), ids_of(turn.answered)
        if token_ids[: len(prompt)] != prompt:  # a token reaches over the border, which decoding cannot undo
            token_ids = prompt + ids_of(turn.answer)
        if len(prompt) == len(token_ids):
            raise _nothing_to_predict(record_id, number)
        predicted = [False] * len(token_ids)
        _predict(predicted, token_ids, len(prompt), len(token_ids), eos_token_ids)
        examples.append(Example(record_id if len(turns) == 1 else f"{record_id}#{number}", token_ids, predicted))
    return examples


def _predict(predicted: list[bool], token_ids: list[int], start: int, stop: int, eos_token_ids: frozenset[int]) -> None:
    """Mark the answer that begins at `start`, up to its first end-of-turn token."""
    for index in range(start, stop):
        predicted[index] = True
        if token_ids[index] in eos_token_ids:
            return


def _nothing_to_predict(record_id: str, number: int) -> Pard2Error:
    return Pard2Error(f"record {record_id}: no token to predict: the chat template shows nothing of answer {number}")
