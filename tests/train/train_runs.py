"""A tiny chat model on disk, conversations for it, and what a run left behind."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chat_tokenizer import END_ID, VOCABULARY, byte_tokenizer
from pard2.config import ObjectiveConfig
from pard2.data.corpus import Example
from pard2.data.features import DocumentStates, joined, online_states
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.objective.loss import LossOutput, TrainedSlots
from pard2.train import loop as training
from pard2.train.attention import AttentionKind
from pard2.train.packed_loss import PackedLoss
from pard2.train.packed_sequences import PackedSequence, lay_out
from pard2.train.teacher import Teacher, trained_slots
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


LAYERS = (-1, -2)  # whose hidden states make the features of `tiny_draft`, too


@dataclass(frozen=True)
class Prepared:
    """A packed sequence, and what the target says about it; without a target, only `packed`."""

    packed: PackedSequence
    states: DocumentStates | None = None
    slots: TrainedSlots | None = None


def prepare(target: Target | None, examples: list[Example], objective: ObjectiveConfig, seed: int = 0, teacher: Teacher | None = None) -> Prepared:
    """These conversations in one sequence. The target's features are those of `LAYERS`."""
    teacher = teacher or (None if target is None else Teacher(target.head, None))
    packed = lay_out(examples, objective, torch.Generator().manual_seed(seed), None if teacher is None else teacher.columns)
    if target is None or teacher is None:
        return Prepared(packed)
    states = joined(online_states(target, examples, LAYERS))
    return Prepared(packed, states, trained_slots(packed, states, teacher, objective))


def packed_loss(draft: Draft, target: Target, prepared: Prepared, objective: ObjectiveConfig, attention: AttentionKind = "blocks") -> LossOutput:
    teacher = Teacher.of(target, draft)
    module = PackedLoss(draft, objective, attention, torch.float32, teacher.size)
    features = None if draft.projection is None else prepared.states.features
    return module(prepared.packed, features, prepared.slots, prepared.states.last_state, teacher.head, True)


def newest(output: str) -> Path:
    """The run's newest checkpoint."""
    return max((Path(output) / "checkpoints").glob("step-*"))


def weights(output: str) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint, the optimizer's state included."""
    state = torch.load(newest(output) / "state.pt", weights_only=True)
    optimizer = {f"optimizer.{name}.{key}": value for name, values in state["optimizer"].items() for key, value in values.items()}
    return state["weights"] | optimizer | {f"average.{name}": value for name, value in state["average"].items()}


def interrupt(monkeypatch: pytest.MonkeyPatch, at_step: int, error: type[BaseException]) -> None:
    """Let a run die inside step `at_step` (counted from 0), after its backward pass."""
    real = training.TrainingLoop._update

    def update(self, step, sums):
        if step == at_step:
            raise error("killed")
        return real(self, step, sums)

    monkeypatch.setattr(training.TrainingLoop, "_update", update)


def assert_bit_for_bit(one: str, other: str) -> None:
    """Two runs ended with the same checkpoint and the same draft."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours), [key for key in ours if not ours[key].equal(theirs[key])]
    saved = [load_file(Path(o) / "draft" / "model.safetensors") for o in (one, other)]
    assert saved[0].keys() == saved[1].keys() and all(saved[0][key].equal(saved[1][key]) for key in saved[0])
