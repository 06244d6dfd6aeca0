"""What is held out is never trained on, and stays held out."""

import json

import pytest

from pard2.data.split import split
from pard2.errors import Pard2Error


def prompt(number: int, text: str | None = None, answer: str | None = None) -> dict:
    messages = [{"role": "user", "content": text or f"question {number}"}]
    return {"id": f"p{number}", "messages": messages + ([] if answer is None else [{"role": "assistant", "content": answer}])}


RECORDS = [prompt(number) for number in range(50)]


def ids(records: list[dict]) -> list[str]:
    return [record["id"] for record in records]


def test_a_record_is_lost_doubled_or_moved():
    others, held_out = split(RECORDS, 10)
    assert len(held_out) == 10 and sorted(ids(others + held_out)) == sorted(ids(RECORDS))
    assert ids(others) == [one for one in ids(RECORDS) if one in ids(others)]
    assert held_out != RECORDS[:10] and ids(split(RECORDS, 10, seed=1)[1]) != ids(held_out)


def test_an_equal_prompt_is_trained_on():
    records = [*RECORDS, *(prompt(100 + n, f"question {n}", answer="another") for n in range(50))]
    others, held_out = split(records, 10)
    texts = [{record["messages"][0]["content"] for record in part} for part in (others, held_out)]
    assert len(held_out) == 20 and not texts[0] & texts[1]


def test_nothing_is_left_or_nothing_was_asked():
    with pytest.raises(Pard2Error, match="`count` 50: there are 50 different prompts"):
        split(RECORDS, 50)
    with pytest.raises(Pard2Error, match="record 's' has no user message"):
        split([{"id": "s", "messages": [{"role": "system", "content": "rule"}]}], 1)


def test_the_command_writes_over_a_file(pard2, tmp_path):
    source, rest, held_out = (tmp_path / name for name in ("all.jsonl", "rest.jsonl", "held-out.jsonl"))
    source.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    command = ("data", "split", "-i", source, "-n", 10, "-o", rest, "--held-out", held_out)
    result = pard2(*command)
    assert result.code == 0 and f"{rest}: 40 records; {held_out}: 10 held out" in " ".join(result.err.split())
    assert len(rest.read_text().splitlines()) == 40 and len(held_out.read_text().splitlines()) == 10
    assert f"{rest} exists; name another file" in pard2(*command).error
    assert pard2(*command, "--force").code == 0 and len(rest.read_text().splitlines()) == 40
    assert "name the same file" in pard2(*command[:-1], rest).error
    assert "it is the input itself" in pard2(*command[:-1], source, "--force").error
    assert "-n 50: there are 50" in pard2("data", "split", "-i", source, "-n", 50, "-o", tmp_path / "a", "--held-out", tmp_path / "b").error
