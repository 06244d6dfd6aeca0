"""A tiny chat model on disk, and conversations for it."""

import json
from pathlib import Path

from chat_tokenizer import END_ID, VOCABULARY, byte_tokenizer
from tiny import tiny_model

CONVERSATIONS = [("a", "one two"), ("bb", "three four five"), ("c c", "six"), ("dd", "seven eight nine ten")]


def save_target(directory: Path, architecture: str = "llama", **shape: int) -> Path:
    model = tiny_model(architecture, layers=3, vocab=VOCABULARY, context=96, **shape)
    model.generation_config.eos_token_id = END_ID
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def write_records(path: Path, conversations: list[tuple[str, str]]) -> Path:
    with open(path, "w") as file:
        for number, (question, answer) in enumerate(conversations):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    return path
