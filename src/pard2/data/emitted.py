"""The very tokens that a target answered with, kept beside its text.

The text alone does not say which they were: the template may show it otherwise, or not at all, special tokens
are not in it, and tokenised again it may be other tokens.
"""

import hashlib
import json
from typing import Any

from pard2.data.conversations import EMITTED_HASH, EMITTED_IDS, Record
from pard2.hf import Tokenizer


def emitted_fields(tokenizer: Tokenizer, prompt: list[int], text: str | None, token_ids: list[int]) -> dict[str, Any]:
    """What a record keeps of an answer: its token ids, and a hash that tells whether they still are its own.

    token_ids: with the end-of-turn token.
    """
    return {EMITTED_IDS: token_ids, EMITTED_HASH: _hash(tokenizer, prompt, text, token_ids)}


def emitted_ids(tokenizer: Tokenizer, prompt: list[int], record: Record) -> list[int] | None:
    """The token ids of the last answer.

    None if tokenizer, template or text are not those that they were made with.
    """
    ids = record[EMITTED_IDS]
    if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        return None
    return ids if record.get(EMITTED_HASH) == _hash(tokenizer, prompt, record["messages"][-1]["content"], ids) else None


def _hash(tokenizer: Tokenizer, prompt: list[int], text: str | None, token_ids: list[int]) -> str:
    # By name, as another vocabulary may tokenise the prompt alike.
    made = json.dumps([prompt, text, token_ids, tokenizer.convert_ids_to_tokens(token_ids)])
    return hashlib.blake2b(made.encode(), digest_size=16).hexdigest()
