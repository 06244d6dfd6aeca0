"""The target answers prompts: a draft must be trained on what its own target says (METHOD: section 4)."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from pard2.data.answers import Answer, Answerer, seed_of
from pard2.data.chat import prompt_ids
from pard2.data.records import Record, RecordWriter, read_records, up_to_user
from pard2.errors import Pard2Error
from pard2.models.target import Target

Settings = dict[str, Any]

_FLAGS = {"model": "-t", "max_new_tokens": "--max-new-tokens", "temperature": "--temperature", "top_p": "--top-p", "seed": "--seed"}


def answer_settings(max_new_tokens: int, temperature: float, top_p: float, seed: int) -> Settings:
    """What answers depend on beside their target, as each record holds it; top_p and seed only where they matter."""
    settings: Settings = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    return settings if temperature == 0 else settings | {"top_p": top_p, "seed": seed}


def check_same_run(writer: RecordWriter, model: str, settings: Settings) -> None:
    """Raises `Pard2Error` if the output holds answers of another target, or made with other settings."""
    wanted = {"model": model} | settings
    for record in read_records(writer.path) if writer.done else []:
        held = {"model": record.get("model")} | (record.get("settings") or {})
        for name, flag in _FLAGS.items():
            if held.get(name) != wanted.get(name):
                raise Pard2Error(
                    f"{writer.path} holds answers made with {_shown(flag, held.get(name))}, and this is {_shown(flag, wanted.get(name))}; "
                    f"give the same {flag}, name another file with -o, or give --force to replace it"
                )


def _shown(flag: str, value: Any) -> str:
    return f"an unknown {flag}" if value is None else f"{flag} {value}"


def regenerate(
    target: Target,
    records: list[Record],
    writer: RecordWriter,
    answer: Answerer,
    settings: Settings,
    *,
    room: int | None = None,
    progress: Callable[[int, int], None] = lambda records, tokens: None,
) -> list[Record]:
    """Write one answered record for each prompt that the output lacks; return those that could not be answered.

    A prompt is a record's messages up to its last user turn. settings: `answer_settings` of what `answer` does. room: tokens of prompt and
    answer together at most; by default the target's context. Records are written in their order, each as soon as it and those before it
    are answered; `progress(1, its tokens)` is called after each. An answer is drawn by the run's seed and the record's id, so that a
    resumed run says what an uninterrupted one would have said.

    Failed records (a prompt that leaves no room for the longest answer, or one that decoding failed on) are returned
    with the reason under `error`, so that count in = count out + failures. Raises `Pard2Error` for a
    target without tokenizer, and for ids that occur twice.
    """
    if target.tokenizer is None:
        raise Pard2Error(f"{target.name!r} has no tokenizer, which regenerating needs")
    repeated = next((name for name, count in Counter(record["id"] for record in records).items() if count > 1), None)
    if repeated is not None:
        raise Pard2Error(f"-i: the id {repeated!r} occurs twice; ids must differ, or a resumed run would skip one of them")
    room = target.context_length if room is None else room
    failures: list[Record] = []
    prompts: list[list[int]] = []
    pending: list[Record] = []
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
        elif len(ids) + settings["max_new_tokens"] > room:
            failures.append({**record, "error": f"prompt of {len(ids)} tokens leaves no room in {room}"})
        else:
            prompts.append(ids)
            pending.append({**record, "messages": messages})
    # Greedy answers draw nothing, whatever the seed.
    seeds = [seed_of(settings.get("seed", 0), record["id"]) for record in pending]
    for record, made in zip(pending, answer(prompts, seeds), strict=True):
        if made.finish_reason == "error":
            failures.append({**record, "error": made.error})
        else:
            writer.write([_answered(record, made, target.name, settings)])
            progress(1, len(made.token_ids))
    return failures


def _answered(record: Record, made: Answer, model: str, settings: Settings) -> Record:
    return {
        **record,
        "messages": [*record["messages"], {"role": "assistant", "content": made.text}],
        "finish_reason": made.finish_reason,
        "model": model,
        "settings": settings,
    }
