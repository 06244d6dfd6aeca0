"""Prompts out of nothing. A random model says no words, so what it says is put into its mouth."""

import pytest

from chat_tokenizer import VOCABULARY, byte_tokenizer
from pard2.data import synthesize as module
from pard2.data.chat import encode
from pard2.data.records import RecordWriter, read_records
from pard2.data.synthesize import synthesize
from pard2.errors import Pard2Error
from tiny import tiny_target


@pytest.fixture
def target():
    target = tiny_target(vocab=VOCABULARY)
    target.tokenizer = byte_tokenizer()
    return target


@pytest.fixture
def say(monkeypatch, target):
    """Makes the target say these texts, a batch at a call; remembers what it was asked."""
    calls = []

    def install(*batches):
        left = list(batches)

        def speak(_target, prompts, *settings):
            calls.append((prompts, settings))
            return [encode(target.tokenizer, text) for text in (left.pop(0) if left else ["no"])]

        monkeypatch.setattr(module, "generate_batch", speak)
        return calls

    return install


def texts(path):
    return [r["messages"][0]["content"] for r in read_records(path)]


def test_only_new_whole_and_meaningful_prompts_are_kept(tmp_path, target, say):
    say(["What is a cat?", " what IS a  cat? ", "Too short", "x " * 40, "How are you today?", "one too many of them"])
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 2, writer, max_new_tokens=64)
    assert texts(tmp_path / "out") == ["What is a cat?", "How are you today?"]


def test_it_starts_where_the_user_speaks(tmp_path, target, say):
    calls = say(["What is a cat?"])
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 1, writer, batch_size=3)
    assert calls[0][0] == [encode(target.tokenizer, "<|start|>user\n")] * 3


def test_a_resumed_run_draws_new_text_under_new_ids(tmp_path, target, say):
    calls = say(["What is a cat?"], ["What is a cat?", "What is a dog?"])
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 1, writer)
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 2, writer)
    assert texts(tmp_path / "out") == ["What is a cat?", "What is a dog?"]
    assert [r["id"] for r in read_records(tmp_path / "out")] == ["synthetic-0", "synthetic-1"]
    assert calls[0][1][-1] != calls[1][1][-1]  # the seeds


def test_a_model_with_nothing_to_say_does_not_run_for_ever(tmp_path, target, say):
    say()
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="no new prompt in 100 batches.*--temperature"):
        synthesize(target, 1, writer)


def test_greedy_synthesis_is_refused(tmp_path, target):
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="--temperature must be above 0"):
        synthesize(target, 1, writer, temperature=0.0)
