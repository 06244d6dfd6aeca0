"""What a chat remembers, and what its commands change."""

import json

import pytest

from pard2.cli.conversation import Conversation
from pard2.data.records import read_records
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import Stats
from pard2.errors import Pard2Error


@pytest.fixture
def talk():
    talk = Conversation(params=SamplingParams(max_tokens=9), arguments={})
    talk.add("q", "a", Stats(accepted_per_cycle=(1, 0), proposed_per_cycle=(2, 3), decode_seconds=2.0))
    return talk


@pytest.mark.parametrize(
    ("words", "field", "value", "told"),
    [
        ("temperature 0.8", "temperature", 0.8, "temperature 0.8"),
        ("max_tokens 7", "max_tokens", 7, "max_tokens 7"),
        ("--max-new-tokens  7", "max_tokens", 7, "max_tokens 7"),
        ("top-k 5", "top_k", 5, "top_k 5"),
        ("seed 3", "seed", 3, "seed 3"),
        ("seed none", "seed", None, "seed new each time"),
    ],
)
def test_settings(talk, words, field, value, told):
    assert talk.set(words) == told and getattr(talk.params, field) == value
    assert told in talk.set("")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("temperature -1", "temperature -1: give 0"),
        ("temperature warm", "'warm' is not a number"),
        ("temperature", "'' is not a number"),
        ("top_k 1.5", "top_k 1.5"),
        ("n 3", "there is no setting n; there are max_tokens, temperature"),
        ("stop x", "there is no setting stop"),
    ],
)
def test_settings_that_there_are_not(talk, words, message):
    before = talk.params
    with pytest.raises(Pard2Error) as error:
        talk.set(words)
    assert message in str(error.value) and "`" not in str(error.value) and talk.params == before


def test_a_saved_conversation_is_a_record_and_grows(talk, tmp_path):
    talk.system, talk.arguments = "s", {"enable_thinking": False}
    file = tmp_path / "f.jsonl"
    assert "2 messages" in talk.save(str(file))
    talk.add("more é", "b", Stats())
    talk.save(str(file))
    (record,) = read_records(file)
    assert [one["content"] for one in record["messages"]] == ["s", "q", "a", "more é", "b"]
    assert record["chat_template_kwargs"] == {"enable_thinking": False}


def test_what_another_wrote_is_not_replaced(talk, tmp_path):
    file = tmp_path / "notes"
    file.write_text("mine")
    for words, message in ((str(file), "exists"), ("", "name of a file"), (str(tmp_path), "exists"), (str(file / "x"), "cannot write")):
        with pytest.raises(Pard2Error, match=message):
            talk.save(words)
    assert file.read_text() == "mine"
    with pytest.raises(Pard2Error, match="nothing has been said"):
        Conversation(params=SamplingParams(), arguments={}).save(str(tmp_path / "new"))


def test_the_last_question_is_taken_back(talk):
    talk.add("again?", "b", Stats())
    assert talk.take_back() == "again?" and [one["content"] for one in talk.turns] == ["q", "a"]
    assert talk.take_back() == "q" and talk.turns == []
    with pytest.raises(Pard2Error, match="nothing has been said"):
        talk.take_back()


def test_statistics_of_all_answers(talk):
    talk.add("q", "a", Stats(accepted_per_cycle=(2,), proposed_per_cycle=(2,), decode_seconds=1.0))
    assert talk.told() == "2 answers, 8 tokens, 2.00 tokens a cycle, 2.0 tokens/s; accepted by position: 67% 33%"
    assert json.dumps(talk.record())
