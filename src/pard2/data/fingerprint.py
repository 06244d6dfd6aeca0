"""Hashes that tell whether token ids made earlier are those that a tokenizer makes now."""

import hashlib
import json

from pard2.hf import Tokenizer


def template_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the chat template; equal for all tokenizers without one."""
    return _hash(tokenizer.chat_template)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the vocabulary, added tokens included, and of the special tokens' roles."""
    return _hash([sorted(tokenizer.get_vocab().items()), sorted((role, str(token)) for role, token in tokenizer.special_tokens_map.items())])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
