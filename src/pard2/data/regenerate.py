"""The target answers prompts: a draft must be trained on what its own target says (METHOD: section 4)."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pard2.data.answers import Replier, Reply
from pard2.data.conversations import EMITTED_HASH, EMITTED_IDS, template_arguments, to_record
from pard2.data.records import Record, RecordWriter, read_records, up_to_user
from pard2.errors import Pard2Error
from pard2.files import write_whole, writing

Settings = dict[str, Any]
Failure = dict[str, str]  # `id` of the record, and the `error`

# What an answered record says of how it was answered. Two of these are parameters of another name.
_SETTINGS = ("model", "max_new_tokens", "temperature", "top_p", "seed", "extra_body", "template_arguments")
_PARAMETERS = {"model": "target", "max_new_tokens": "max_tokens"}


def answer_settings(
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    extra_body: dict[str, Any] | None = None,
    template_arguments: dict[str, Any] | None = None,
) -> Settings:
    """What answers depend on beside their target, in the form in which each record holds it.

    top_p, seed: left out of the settings at temperature 0, where they have no effect.
    extra_body: further fields of an endpoint's requests, which may change any answer.
    template_arguments: for the chat template, where a record has no such argument of its own.
    """
    settings: Settings = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    if temperature > 0:
        settings |= {"top_p": top_p, "seed": seed}
    more = {"extra_body": extra_body, "template_arguments": template_arguments}
    return settings | {name: value for name, value in more.items() if value}


def check_same_run(writer: RecordWriter, model: str, settings: Settings, records: Sequence[Record] = ()) -> None:
    """Raises `Pard2Error` if the output holds answers of another target, other settings, or to other prompts.

    writer: of the output.
    records: the prompts of this run.
    """
    wanted = {"model": model} | settings
    asked = {record["id"]: record for record in records}
    for record in read_records(writer.path) if writer.done else []:
        held = {"model": record.get("model")} | (made if isinstance(made := record.get("settings"), dict) else {})
        for name in _SETTINGS:
            parameter = _PARAMETERS.get(name, name)
            if held.get(name) != wanted.get(name):
                raise Pard2Error(
                    f"{writer.path} holds answers made with {_shown(parameter, held.get(name))}, and this is {_shown(parameter, wanted.get(name))}; "
                    f"give the same `{parameter}`, name another file with `output`, or give `force` to replace it"
                )
        if record["id"] in asked and _asked(record) != _asked(asked[record["id"]]):
            raise Pard2Error(
                f"{writer.path} answers another prompt under the id {record['id']!r} than `source` holds now (its messages, tools or "
                "chat_template_kwargs differ); name another file with `output`, or give `force` to replace it"
            )


def _asked(record: Record) -> list[Any]:
    """The prompt of a record, in the form that it has after it was written and read."""
    again = to_record(json.loads(json.dumps(record, default=str)), "")
    return [up_to_user(again), template_arguments(again)]


def _shown(parameter: str, value: Any) -> str:
    if value is None:
        return f"no `{parameter}`"
    return f"`{parameter}` {json.dumps(value) if isinstance(value, dict) else value}"


def regenerate(
    records: list[Record],
    writer: RecordWriter,
    reply: Replier,
    model: str,
    settings: Settings,
    *,
    progress: Callable[[int, int], None] = lambda records, tokens: None,
) -> list[Failure]:
    """Write an answered record for each prompt that the output lacks; list and return the failures.

    Each record is written as soon as its reply arrives. Every record is either written or among the failures.
    The failures of this run are in `failures_path(output)` when it ends, even by an exception; without
    failures there is no such file.

    records: their messages up to the last user turn are the prompts.
    model, settings: what `reply` answers with; stored in the records.
    progress: called with (1, tokens) after each record, answered or not.

    Raises `Pard2Error` for ids that occur twice.
    """
    repeated = next((name for name, count in Counter(record["id"] for record in records).items() if count > 1), None)
    if repeated is not None:
        raise Pard2Error(f"`source`: the id {repeated!r} occurs twice; ids must differ, or a resumed run would skip one of them")
    pending = [{**record, "messages": up_to_user(record)} for record in records if record["id"] not in writer.done]
    failures = [_failure(record, "no user message") for record in pending if not record["messages"]]
    try:
        with closing(reply([record for record in pending if record["messages"]])) as replies:
            for record, made in replies:
                if made.finish_reason == "error":
                    failures.append(_failure(record, made.error or "no reason given"))
                else:
                    writer.write([_answered(record, made, model, settings)])
                progress(1, made.tokens)
    finally:
        list_failures(writer.path, failures)
    return failures


def failures_path(output: Path) -> Path:
    """The list of records that could not be answered, in each line a JSON object with `id` and `error`."""
    return output.with_name(output.name + ".failures.jsonl")


def list_failures(output: Path, failures: list[Failure]) -> None:
    """Replace the list of failures beside the output; without failures it is removed.

    Raises `Pard2Error` if it cannot be written.
    """
    path = failures_path(output)
    if failures:
        text = "".join(json.dumps(failure) + "\n" for failure in failures)
        write_whole(path, text.encode(), f"; {len(failures):,} records could not be answered")
    else:
        with writing(path):
            path.unlink(missing_ok=True)


def _failure(record: Record, error: str) -> Failure:
    return {"id": record["id"], "error": error}


def _answered(record: Record, made: Reply, model: str, settings: Settings) -> Record:
    return {
        # without the tokens of an earlier answer
        **{key: value for key, value in record.items() if key not in (EMITTED_IDS, EMITTED_HASH)},
        "messages": [*record["messages"], {"role": "assistant", "content": made.text}],
        "finish_reason": made.finish_reason,
        "model": model,
        "settings": settings,
        **made.kept,
    }
