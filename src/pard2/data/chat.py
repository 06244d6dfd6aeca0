"""Conversations to tokens: the chat template, and which tokens the draft is trained to predict.

The template needs no generation markers: an answer is the difference of two renderings, the conversation up
to the answer and the conversation with it. A prompt is tokenised exactly as in decoding, and the answer's
tokens follow it: the target's own tokens where they are known, otherwise those of its text.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pard2.data.arguments import template_source, unread_arguments
from pard2.data.conversations import EMITTED_IDS, Message, Record, template_arguments
from pard2.data.corpus import Example
from pard2.data.emitted import emitted_ids
from pard2.data.shown import CLOSE, is_context, is_empty, spoken, unshown
from pard2.data.tally import Tally
from pard2.errors import Pard2Error, first_line
from pard2.hf import Tokenizer

_MARKER = "\u2402MARK\u2403"  # a text that nobody writes


def prompt_text(tokenizer: Tokenizer, messages: list[Message], arguments: dict[str, Any] | None = None) -> str:
    """The template's text up to where the assistant starts to answer.

    arguments: `template_arguments` of a record.
    """
    return _render(tokenizer, messages, arguments or {}, add_generation_prompt=True)


def prompt_ids(tokenizer: Tokenizer, messages: list[Message], arguments: dict[str, Any] | None = None) -> list[int]:
    return encode(tokenizer, prompt_text(tokenizer, messages, arguments))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that already holds its special tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def check_ids(token_ids: list[int], vocab_size: int, where: str, model: str) -> None:
    """Raises `Pard2Error` for no ids, and for an id that the model has no embedding for.

    The latter happens where a token was added to the tokenizer but not to the model.

    vocab_size: how many embeddings the model has.
    where, model: what errors call the ids and the model.
    """
    if not token_ids:
        raise Pard2Error(f"{where} is empty: what the chat template or the tokenizer makes of it holds no token")
    if wrong := [i for i in token_ids if not 0 <= i < vocab_size]:
        resize = "where a token was added to its tokenizer, resize its embedding, too (resize_token_embeddings)"
        raise Pard2Error(f"{where} holds token id {wrong[0]}; {model} knows 0 to {vocab_size - 1}; {resize}")


def _render(tokenizer: Tokenizer, messages: list[Message], arguments: dict[str, Any], add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise Pard2Error("the tokenizer has no chat template; give raw text (`raw`, or rows of `text`) or a chat model")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt, **arguments)
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise Pard2Error(f"the chat template failed: {first_line(error)}") from None


def user_turn_text(tokenizer: Tokenizer, arguments: dict[str, Any] | None = None) -> str:
    """The template's text up to where a user starts to speak; a chat model continues it as a user."""
    rendered = _render(tokenizer, [{"role": "user", "content": _MARKER}], arguments or {}, add_generation_prompt=False)
    if _MARKER not in rendered:
        raise Pard2Error("the chat template does not show the user's text; synthesize needs a chat model")
    return rendered.split(_MARKER)[0]


@dataclass(frozen=True)
class _Turn:
    """An assistant's turn.

    number: counted from 1 in the record.
    prompt: the text that decoding starts from.
    answered: the prompt with the answer after it; the prompt alone where `emitted` is known.
    emitted: the very tokens that the target answered with, where they are known.
    """

    number: int
    prompt: str
    answered: str
    emitted: list[int] = field(default_factory=list)

    @property
    def answer(self) -> str:
        return self.answered[len(self.prompt) :]


def tokenize_record(tokenizer: Tokenizer, record: Record, eos_token_ids: frozenset[int]) -> list[Example]:
    """As `tokenize_records`, for one record."""
    return tokenize_records(tokenizer, [record], eos_token_ids)[0]


def tokenize_records(tokenizer: Tokenizer, records: list[Record], eos_token_ids: frozenset[int], tally: Tally | None = None) -> list[list[Example]]:
    """Tokens and loss mask of each record, of any length. Many at once take half the time of single ones.

    Every assistant turn is predicted, from its first token to its end-of-turn token; what the template writes
    after that token is context only. An answer that was cut by its length limit (`finish_reason: length`) has
    no end-of-turn token to learn. Where a record keeps the tokens that the target answered with
    (`pard2.data.emitted`), these are learned, provided that tokenizer and template are the same as then.

    A conversation is one example, in which every answer follows exactly the tokens that decoding would have
    read before it. Where this is impossible, because the template renders earlier turns differently from the
    last one (without thoughts, for example) or a token crosses a turn's border, each assistant turn is an
    example of its own, `id#1`, `id#2`, ... In a plain `text`, all tokens but the first are predicted.

    An answer that is empty, or that the template does not show completely (thoughts, tool calls), is left out
    and counted.

    eos_token_ids: tokens that end a turn.
    tally: counts what was left out; without one, an answer that would be left out is an error.

    Raises `Pard2Error`, naming the record, if the template fails or an answer has no token to predict.
    """
    tally = tally or Tally(strict=True)
    known: dict[str, list[int]] = {}
    turns = [None if "messages" not in record else _turns(tokenizer, record, tally, known) for record in records]
    texts = sorted({text for some in turns if some for text in _texts(some)} - known.keys())
    known |= zip(texts, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [], strict=True)

    def ids_of(text: str) -> list[int]:
        return known[text] if text in known else encode(tokenizer, text)

    ends = [tokenizer.convert_ids_to_tokens(token) for token in eos_token_ids]
    made = []
    for record, some in zip(records, turns, strict=True):
        if some is None:
            made.append([_plain_text(tokenizer, record)])
        elif not some:
            made.append([])
        else:
            whole = _together(record["id"], some, ids_of, eos_token_ids, [e for e in ends if e])
            made.append([whole] if whole else _apart(record["id"], some, ids_of, eos_token_ids))
    return made


def _one_text(turns: list[_Turn]) -> bool:
    """Whether each turn's text is the beginning of the last one's."""
    whole = turns[-1].answered
    return all(whole.startswith(turn.answered) and turn.answered.startswith(turn.prompt) for turn in turns)


def _texts(turns: list[_Turn]) -> list[str]:
    """The texts that will certainly be tokenised."""
    return [turn.prompt for turn in turns] + [turn.answered for turn in (turns[-1:] if _one_text(turns) else turns)]


def _plain_text(tokenizer: Tokenizer, record: Record) -> Example:
    token_ids = tokenizer(record["text"], verbose=False)["input_ids"]  # with the special tokens that the model expects, such as BOS
    if len(token_ids) < 2:
        raise Pard2Error(f"record {record['id']}: no token to predict: the text is {len(token_ids)} tokens long")
    return Example.of(record["id"], token_ids, [False] + [True] * (len(token_ids) - 1))


def _turns(tokenizer: Tokenizer, record: Record, tally: Tally, known: dict[str, list[int]]) -> list[_Turn]:
    """The turns that are learned; all others are left out and counted.

    known: token ids by text; receives those of a prompt that had to be tokenised here.
    """
    messages, arguments, name = record["messages"], template_arguments(record), f"record {record['id']}"
    # An assistant's message at the very beginning answers nothing: decoding never begins there.
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant" and index]
    if not answers:
        raise Pard2Error(f"{name}: no token to predict: no assistant message answers another")
    tally.used(record.get("chat_template_kwargs") or {})
    if unread_arguments(tokenizer, record):
        tally.counts["conversations with `chat_template_kwargs` or `tools` that the chat template does not read"] += 1
    turns: list[_Turn] = []
    left_out = 0
    for number, index in enumerate(answers, 1):
        if is_context(messages[index], f"{name}: answer {number}"):
            tally.counts["answers that are context only, as they say"] += 1
            continue
        try:
            prompt = _render(tokenizer, messages[:index], arguments, add_generation_prompt=True)
            if index == len(messages) - 1 and EMITTED_IDS in record:
                known[prompt] = encode(tokenizer, prompt)
                if emitted := emitted_ids(tokenizer, known[prompt], record):
                    turns.append(_Turn(number, prompt, prompt, emitted))
                    continue
                tally.counts["answers learned from their text, as their token ids are of another tokenizer, template or text"] += 1
            turn = _text_turn(tokenizer, record, number, index, prompt)
        except Pard2Error as error:
            raise Pard2Error(f"{name}: {error}") from None
        if isinstance(turn, _Turn):
            turns.append(turn)
        else:
            tally.leave_out(turn[0], f"{name}: {turn[1]}")
            left_out += 1
    if not turns and tally.strict:
        raise Pard2Error(f"{name}: no token to predict: its answers are context only, as they say")
    tally.lost += bool(left_out and not turns)
    return turns


def _text_turn(tokenizer: Tokenizer, record: Record, number: int, index: int, prompt: str) -> _Turn | tuple[str, str]:
    """An answer known by its text; or, where it is left out, its kind and the reason."""
    messages, arguments = record["messages"], template_arguments(record)
    message = messages[index]
    if is_empty(message):
        return "empty", f"no token to predict: answer {number} is empty"
    if record.get("finish_reason") == "length" and index == len(messages) - 1:
        return _Turn(number, prompt, prompt + (message["content"] or ""))  # the template would end an answer that did not end
    answered = _render(tokenizer, messages[: index + 1], arguments, add_generation_prompt=False)
    follows = answered.startswith(prompt)
    missing = unshown(message, prompt, answered[len(prompt) :]) if follows and answered != prompt else None
    if follows and missing is None:
        return _Turn(number, prompt, answered)
    # A thinking model's template omits thoughts, or lets the prompt open them; the target generates them all
    # the same.
    said = spoken(message, prompt)
    if said is not None and CLOSE in prompt + template_source(tokenizer):
        ending = _render(tokenizer, [*messages[:index], {"role": "assistant", "content": _MARKER}], arguments, False).rpartition(_MARKER)
        if ending[1]:
            return _Turn(number, prompt, prompt + said + ending[2])
    if missing is not None:
        return f"{missing} not shown", f"the chat template does not show the {missing} of answer {number}"
    where = f"where decoding begins it, after {prompt[-20:]!r}, so it cannot be told apart; does the record want `chat_template_kwargs`?"
    return "not shown where decoding begins them", f"the chat template does not show answer {number} {where}"


def _together(
    record_id: str, turns: list[_Turn], ids_of: Callable[[str], list[int]], eos_token_ids: frozenset[int], ends: list[str]
) -> Example | None:
    """The conversation as one example; None if decoding would have read other tokens before an answer."""
    if not _one_text(turns):
        return None
    token_ids = ids_of(turns[-1].answered) + turns[-1].emitted
    predicted = [False] * len(token_ids)
    for turn in turns:
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
            raise _nothing_to_predict(record_id, turn.number)
    return Example.of(record_id, token_ids, predicted)


def _apart(record_id: str, turns: list[_Turn], ids_of: Callable[[str], list[int]], eos_token_ids: frozenset[int]) -> list[Example]:
    """Each assistant turn as an example of its own, exactly as decoding sees it."""
    examples = []
    for turn in turns:
        prompt, token_ids = ids_of(turn.prompt), ids_of(turn.answered) + turn.emitted
        if token_ids[: len(prompt)] != prompt:  # a token crosses the border, which cannot happen in decoding
            token_ids = prompt + ids_of(turn.answer)
        if len(prompt) == len(token_ids):
            raise _nothing_to_predict(record_id, turn.number)
        predicted = [False] * len(token_ids)
        _predict(predicted, token_ids, len(prompt), len(token_ids), eos_token_ids)
        examples.append(Example.of(record_id if len(turns) == 1 else f"{record_id}#{turn.number}", token_ids, predicted))
    return examples


def _predict(predicted: list[bool], token_ids: list[int], start: int, stop: int, eos_token_ids: frozenset[int]) -> None:
    """Mark the answer that begins at `start`, up to its first end-of-turn token."""
    for index in range(start, stop):
        predicted[index] = True
        if token_ids[index] in eos_token_ids:
            return


def _nothing_to_predict(record_id: str, number: int) -> Pard2Error:
    return Pard2Error(f"record {record_id}: no token to predict: the chat template shows nothing of answer {number}")
