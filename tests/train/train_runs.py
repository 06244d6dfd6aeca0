"""A tiny chat model on disk, conversations for it, and what a run left behind."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

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


def weights(output: str) -> dict[str, torch.Tensor]:
    """All tensors of a run's checkpoint, the optimizer's state included."""
    state = torch.load(Path(output) / "checkpoint" / "state.pt", weights_only=True)
    return state["model"] | {f"{i}.{k}": v for i, p in state["optimizer"]["state"].items() for k, v in p.items()}


def assert_bit_for_bit(one: str, other: str) -> None:
    """Two runs ended with the same checkpoint and the same draft."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours), [key for key in ours if not ours[key].equal(theirs[key])]
    saved = [load_file(Path(o) / "draft" / "model.safetensors") for o in (one, other)]
    assert saved[0].keys() == saved[1].keys() and all(saved[0][key].equal(saved[1][key]) for key in saved[0])
