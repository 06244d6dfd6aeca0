"""The target writes the users' prompts, too, so that no other data set is needed.

A chat model has learned what users write: started where its template puts the user's text, and sampled, it
writes a question and ends the turn by itself.
"""

from collections.abc import Callable
from typing import Any

from pard2.data.answers import Answerer, seed_of
from pard2.data.arguments import check_arguments
from pard2.data.chat import encode, user_turn_text
from pard2.data.records import RecordWriter, read_records
from pard2.errors import Pard2Error
from pard2.models.target import Target

MIN_WORDS = 4
MOST_BARREN = 2000  # consecutive texts without a new prompt


def synthesize(
    target: Target,
    count: int,
    writer: RecordWriter,
    answer: Answerer,
    *,
    batch_size: int = 32,
    seed: int = 0,
    arguments: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda records, tokens: None,
) -> None:
    """Write prompts until the output holds `count`, each different, each ended by the model itself.

    Texts that were cut at the length limit, or have fewer than `MIN_WORDS` words, are dropped.

    answer: must sample; greedy text would be the same each time.
    batch_size: the least number of texts to ask for at once.
    arguments: of the chat template.
    progress: called with (new records, tokens) after each text.

    Raises `Pard2Error` if `MOST_BARREN` consecutive texts give no new prompt, or decoding fails.
    """
    if target.tokenizer is None:
        raise Pard2Error(f"{target.name!r} has no tokenizer, which synthesizing needs")
    check_arguments(target.tokenizer, arguments)
    opening = encode(target.tokenizer, user_turn_text(target.tokenizer, arguments))
    seen = {_key(text) for text in _texts(writer)}
    barren = 0
    while (missing := count - len(writer.done)) > 0:
        asked = max(missing, batch_size)
        # The names count from the prompts already there, so that a resumed run draws new text.
        seeds = [seed_of(seed, f"{len(writer.done)}+{barren + number}") for number in range(asked)]
        for made in answer([opening] * asked, seeds):
            if made.finish_reason == "error":
                raise Pard2Error(f"{target.name!r} wrote no prompt: {made.error}")
            text = (made.text or "").strip()
            new = made.finish_reason == "stop" and len(text.split()) >= MIN_WORDS and _key(text) not in seen
            if new:
                seen.add(_key(text))
                writer.write([{"id": _free_id(writer.done), "messages": [{"role": "user", "content": text}]}])
            progress(int(new), len(made.token_ids))
            barren = 0 if new else barren + 1
            if barren == MOST_BARREN:
                raise Pard2Error(f"{target.name!r} wrote no new prompt in {MOST_BARREN} texts; raise `temperature` or `max_tokens`")
            if len(writer.done) >= count:
                break


def _free_id(done: set[str]) -> str:
    """The next unused id; a file from which prompts were removed by hand has numbers above its count."""
    number = len(done)
    while f"synthetic-{number}" in done:
        number += 1
    return f"synthetic-{number}"


def _key(text: str) -> str:
    return " ".join(text.lower().split())


def _texts(writer: RecordWriter) -> list[str]:
    return [r["messages"][0]["content"] for r in read_records(writer.path)] if writer.done else []
