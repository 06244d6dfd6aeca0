"""Records in two parts: to train on, and held out to evaluate with."""

import hashlib
import json

from pard2.data.conversations import Record, up_to_user
from pard2.errors import Pard2Error


def split(records: list[Record], count: int, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """(the others, the held-out ones), each in the order of the records.

    The choice hangs on the prompts' texts and the seed alone, not on their order. Records of one prompt come
    into one part, so that nothing held out is trained on.

    count: of different prompts to hold out.

    Raises `Pard2Error` for a record without a prompt, and where nothing would be left to train on.
    """
    keys = [_key(record, seed) for record in records]
    chosen = set(sorted(set(keys))[:count])
    if len(chosen) == len(set(keys)):
        raise Pard2Error(f"`count` {count}: there are {len(chosen)} different prompts, and some must be left to train on")
    parts: tuple[list[Record], list[Record]] = ([], [])
    for record, key in zip(records, keys, strict=True):
        parts[key in chosen].append(record)
    return parts


def _key(record: Record, seed: int) -> str:
    messages = up_to_user(record)
    if not messages:
        raise Pard2Error(f"record {record['id']!r} has no user message, so that it is no prompt to hold out")
    return hashlib.sha256(json.dumps([seed, messages], sort_keys=True).encode()).hexdigest()
