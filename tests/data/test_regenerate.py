"""Answers of the target: every prompt exactly once, whatever happens in between."""

import pytest

from chat_tokenizer import END_ID, VOCABULARY, byte_tokenizer
from pard2.data.chat import prompt_ids
from pard2.data.records import RecordWriter, read_records
from pard2.data.regenerate import regenerate
from pard2.errors import Pard2Error
from tiny import greedy, set_eos, tiny_target


@pytest.fixture(scope="module")
def target():
    target = tiny_target(vocab=VOCABULARY, context=128)
    target.tokenizer = byte_tokenizer()
    set_eos(target, END_ID)
    return target


def prompts(*texts):
    return [{"id": f"p{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(texts)]


def answers(path):
    return {r["id"]: r for r in read_records(path)}


SEVEN = prompts(*("word " * n for n in (3, 1, 4, 1, 5, 9, 2)))


def test_answers_are_the_targets_own(tmp_path, target):
    with RecordWriter(tmp_path / "out") as writer:
        assert regenerate(target, [{**SEVEN[0], "source": "x"}], writer, max_new_tokens=6) == []
    made = answers(tmp_path / "out")["p0"]
    expected = greedy(target, prompt_ids(target.tokenizer, SEVEN[0]["messages"]), 6)
    assert made["messages"][:-1] == SEVEN[0]["messages"] and made["source"] == "x"
    assert made["messages"][-1] == {"role": "assistant", "content": target.tokenizer.decode(expected, skip_special_tokens=True)}
    assert made["model"] == target.name and made["finish_reason"] == "length"


def test_an_answer_that_ends_by_itself_says_stop(tmp_path, target):
    ids = prompt_ids(target.tokenizer, SEVEN[0]["messages"])
    expected = greedy(target, ids, 6)
    stop = next(t for i, t in enumerate(expected) if i and t not in expected[:i])
    set_eos(target, stop)
    try:
        with RecordWriter(tmp_path / "out") as writer:
            regenerate(target, SEVEN[:1], writer, max_new_tokens=6)
    finally:
        set_eos(target, END_ID)
    assert answers(tmp_path / "out")["p0"]["finish_reason"] == "stop"


def test_ctrl_c_in_the_middle_and_again_gives_the_same_file(tmp_path, target):
    with RecordWriter(tmp_path / "whole") as writer:
        regenerate(target, SEVEN, writer, max_new_tokens=5, batch_size=2)

    def interrupt(_records, _tokens):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path / "parts") as writer:
            regenerate(target, SEVEN, writer, max_new_tokens=5, batch_size=2, progress=interrupt)
    assert len(answers(tmp_path / "parts")) == 4
    with RecordWriter(tmp_path / "parts") as writer:
        regenerate(target, SEVEN, writer, max_new_tokens=5, batch_size=3)
    assert answers(tmp_path / "parts") == answers(tmp_path / "whole")
    assert len(read_records(tmp_path / "parts")) == 7


def test_what_cannot_be_answered_is_returned_with_its_reason(tmp_path, target):
    records = [*prompts("ok", "x" * 200), {"id": "mute", "messages": [{"role": "system", "content": "x"}]}]
    with RecordWriter(tmp_path / "out") as writer:
        failures = regenerate(target, records, writer, max_new_tokens=5)
        assert len(writer.done) + len(failures) == len(records)
    reasons = {f["id"]: f["error"] for f in failures}
    assert "leaves no room in 128" in reasons["p1"] and reasons["mute"] == "no user message"


def test_a_conversation_that_the_template_refuses_does_not_stop_the_others(tmp_path, target):
    tokenizer = target.tokenizer
    target.tokenizer = byte_tokenizer("{% if 'no' in messages[0].content %}{{ raise_exception('never') }}{% endif %}" + tokenizer.chat_template)
    try:
        with RecordWriter(tmp_path / "out") as writer:
            failures = regenerate(target, prompts("no", "yes"), writer, max_new_tokens=3)
    finally:
        target.tokenizer = tokenizer
    assert [f["id"] for f in failures] == ["p0"] and "never" in failures[0]["error"]
    assert list(answers(tmp_path / "out")) == ["p1"]


def test_two_records_of_one_id_are_refused(tmp_path, target):
    """The second would be answered in one run and skipped in a resumed one."""
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="'p0' occurs twice"):
        regenerate(target, [SEVEN[0], SEVEN[0]], writer, max_new_tokens=3)


def test_no_tokenizer_is_one_line(tmp_path):
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="no tokenizer"):
        regenerate(tiny_target(), SEVEN, writer, max_new_tokens=3)
