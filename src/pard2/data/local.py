"""Answers of a target that is loaded here: conversations through its chat template into the decoder."""

from collections.abc import Generator
from typing import Any

from pard2.data.answers import Answerer, Replier, Reply, seed_of
from pard2.data.chat import check_ids, prompt_ids
from pard2.data.conversations import Record, template_arguments
from pard2.data.emitted import emitted_fields
from pard2.errors import Pard2Error
from pard2.models.target import Target


def local_replier(target: Target, answer: Answerer, settings: dict[str, Any], room: int | None = None) -> Replier:
    """Replies of a target that is loaded here, in the order of the records.

    An answer's seed is made of the run's seed and the record's id, so that a resumed run gives the same
    answers as an uninterrupted one. A prompt that leaves no room for the longest answer, or that the chat
    template refuses, gets a reply with an error.

    settings: `answer_settings`, as `answer` decodes.
    room: the most tokens of prompt and answer together; None for the target's context.

    Raises `Pard2Error` for a target without tokenizer.
    """
    tokenizer = target.tokenizer
    if tokenizer is None:
        raise Pard2Error(f"{target.name!r} has no tokenizer, which regenerating needs")
    room = target.context_length if room is None else room

    def reply(records: list[Record]) -> Generator[tuple[Record, Reply]]:
        prompts: list[list[int]] = []
        answerable: list[Record] = []
        for record in records:
            try:
                ids = prompt_ids(tokenizer, record["messages"], template_arguments(record))
                check_ids(ids, target.vocab_size, "prompt", repr(target.name))
            except Pard2Error as error:  # a template may refuse one conversation, for example two user turns in a row
                yield record, Reply(None, "error", error=str(error))
                continue
            if len(ids) + settings["max_new_tokens"] > room:
                yield record, Reply(None, "error", error=f"prompt of {len(ids)} tokens leaves no room in {room}")
            else:
                prompts.append(ids)
                answerable.append(record)
        # Greedy answers have no seed and use none.
        seeds = [seed_of(settings.get("seed", 0), record["id"]) for record in answerable]
        for record, prompt, made in zip(answerable, prompts, answer(prompts, seeds), strict=True):
            kept = emitted_fields(tokenizer, prompt, made.text, made.token_ids)
            yield record, Reply(made.text, made.finish_reason, len(made.token_ids), made.error, kept)

    return reply
