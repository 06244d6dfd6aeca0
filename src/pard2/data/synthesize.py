"""The target writes the user's part too, so that no outside data set is needed.

A chat model knows what users say: started where its template puts the user's text, and sampled, it
writes a question, and ends the turn by itself.
"""

from collections.abc import Callable

from pard2.data.chat import encode, user_turn_text
from pard2.data.generation import generate_batch
from pard2.data.records import Record, RecordWriter, read_records
from pard2.errors import Pard2Error
from pard2.models.target import Target

MIN_WORDS = 4


def synthesize(
    target: Target,
    count: int,
    writer: RecordWriter,
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 0.95,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda records, tokens: None,
) -> None:
    """Write prompts until the output holds `count`, each different, each ended by the model itself.

    Prompts cut by `max_new_tokens` or shorter than `MIN_WORDS` words are thrown away. Raises `Pard2Error` if
    a hundred batches in a row bring nothing new.
    """
    if target.tokenizer is None:
        raise Pard2Error(f"{target.name!r} has no tokenizer, which synthesizing needs")
    if temperature <= 0:
        raise Pard2Error("--temperature must be above 0 to synthesize: greedy text would be the same prompt each time")
    opening = encode(target.tokenizer, user_turn_text(target.tokenizer))
    seen = {_key(text) for text in _texts(writer)}
    barren = batch = 0
    while len(writer.done) < count:
        # The batch number counts from what is there, so that a resumed run draws new text.
        answers = generate_batch(target, [opening] * batch_size, max_new_tokens, temperature, top_p, hash_seed(seed, len(writer.done), batch))
        batch += 1
        kept: list[Record] = []
        for answer in answers:
            text = target.tokenizer.decode(answer, skip_special_tokens=True).strip()
            if len(answer) < max_new_tokens and len(text.split()) >= MIN_WORDS and _key(text) not in seen:
                seen.add(_key(text))
                kept.append({"id": f"synthetic-{len(writer.done) + len(kept)}", "messages": [{"role": "user", "content": text}]})
        kept = kept[: count - len(writer.done)]
        writer.write(kept)
        progress(len(kept), sum(map(len, answers)))
        barren = 0 if kept else barren + 1
        if barren == 100:
            raise Pard2Error(f"{target.name!r} wrote no new prompt in 100 batches; raise --temperature or --max-new-tokens")


def hash_seed(seed: int, done: int, batch: int) -> int:
    """One seed for each batch of each resumed run."""
    return (seed * 1_000_003 + done) * 1_009 + batch


def _key(text: str) -> str:
    return " ".join(text.lower().split())


def _texts(writer: RecordWriter) -> list[str]:
    return [r["messages"][0]["content"] for r in read_records(writer.path)] if writer.done else []
