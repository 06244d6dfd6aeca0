"""The target answers prompts: a draft must be trained on what its own target says (METHOD: section 4)."""

from collections import Counter
from collections.abc import Callable

from pard2.data.chat import prompt_ids
from pard2.data.generation import generate_batch
from pard2.data.records import Record, RecordWriter, up_to_user
from pard2.errors import Pard2Error
from pard2.models.target import Target


def regenerate(
    target: Target,
    records: list[Record],
    writer: RecordWriter,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda records, tokens: None,
) -> list[Record]:
    """Write one answered record for each prompt that the output lacks; return those that could not be answered.

    A prompt is a record's messages up to its last user turn. Prompts of like length share a batch.
    `progress(records, tokens)` is called after each batch with what that batch made.
    Failed records (a prompt that leaves no room for `max_new_tokens` in the context) are returned
    with the reason under `error`, so that count in = count out + failures. Raises `Pard2Error` for a
    target without tokenizer or chat template, and for ids that occur twice.
    """
    if target.tokenizer is None:
        raise Pard2Error(f"{target.name!r} has no tokenizer, which regenerating needs")
    repeated = next((name for name, count in Counter(record["id"] for record in records).items() if count > 1), None)
    if repeated is not None:
        raise Pard2Error(f"-i: the id {repeated!r} occurs twice; ids must differ, or a resumed run would skip one of them")
    failures: list[Record] = []
    pending: list[tuple[list[int], Record]] = []
    for record in records:
        if record["id"] in writer.done:
            continue
        messages = up_to_user(record)
        try:
            ids = prompt_ids(target.tokenizer, messages) if messages else []
        except Pard2Error as error:  # a template may refuse one conversation, such as two user turns in a row
            failures.append({**record, "error": str(error)})
            continue
        if not messages:
            failures.append({**record, "error": "no user message"})
        elif len(ids) + max_new_tokens > target.context_length:
            failures.append({**record, "error": f"prompt of {len(ids)} tokens leaves no room in {target.context_length}"})
        else:
            pending.append((ids, {**record, "messages": messages}))
    pending.sort(key=lambda item: (len(item[0]), item[1]["id"]))
    for start in range(0, len(pending), batch_size):
        batch = pending[start : start + batch_size]
        answers = generate_batch(target, [ids for ids, _ in batch], max_new_tokens, temperature, top_p, seed + start)
        writer.write(_answered(target, record, answer, max_new_tokens) for (_, record), answer in zip(batch, answers, strict=True))
        progress(len(batch), sum(map(len, answers)))
    return failures


def _answered(target: Target, record: Record, answer: list[int], max_new_tokens: int) -> Record:
    text = target.tokenizer.decode(answer, skip_special_tokens=True)
    return {
        **record,
        "messages": [*record["messages"], {"role": "assistant", "content": text}],
        "finish_reason": "length" if len(answer) == max_new_tokens else "stop",
        "model": target.name,
    }
