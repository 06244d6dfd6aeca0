"""A conversation: turns are remembered, and what goes wrong with one does not end it."""

import io
import re

import pytest
from rich.style import Style

from chat_tokenizer import byte_tokenizer
from pard2.cli.colours import ColouredText
from pard2.data.records import read_records
from pard2.engine.engine import Engine
from pard2.engine.statistics import Step


@pytest.fixture
def say(monkeypatch, pard2, target_directory, draft_directory):
    def run(*lines: str, options: tuple = ()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return pard2("chat", "-t", target_directory, "-d", draft_directory, "--dtype", "float32", "--device", "cpu", *options)

    return run


@pytest.fixture
def asked(monkeypatch) -> list[list[dict]]:
    """The conversations that the engine is asked to continue."""
    found, real = [], Engine.stream

    def stream(self, prompt, params=None, raw=False):
        found.append([dict(message) for message in prompt])
        return real(self, prompt, params, raw)

    monkeypatch.setattr(Engine, "stream", stream)
    return found


def test_turns_are_remembered_until_reset(say, asked):
    result = say("hello", "and?", "/reset", "again", options=("--max-new-tokens", 6, "--system", "s"))
    assert result.code == 0
    first, second, third = asked
    assert [m["role"] for m in first] == ["system", "user"]
    assert [m["role"] for m in second] == ["system", "user", "assistant", "user"] and second[1]["content"] == "hello"
    assert result.out.startswith(second[2]["content"])
    assert [m["content"] for m in third] == ["s", "again"]
    assert len(re.findall(r"tokens/s, [\d.]+ tokens a cycle", result.err)) == 3


def test_a_conversation_that_is_too_long_can_be_reset(say, asked):
    """The tiny target reads 160 tokens."""
    result = say("x" * 200, "/reset", "short", options=("--max-new-tokens", 4))
    assert result.code == 0 and "shorten the prompt; /reset forgets the conversation" in result.err
    assert asked[-1] == [{"role": "user", "content": "short"}]


def test_commands_are_not_said_to_the_model(say, asked):
    result = say("", "/help", "/exit", "never read")
    assert result.code == 0 and asked == [] and result.out == ""


@pytest.fixture
def interrupted(asked, monkeypatch):
    """Ctrl-C in this step of the first answer."""

    def interrupt(at: int) -> None:
        real, calls = Engine.step, []

        def step(self):
            calls.extend(asked[:1])  # none while it warms up
            if asked and len(calls) == at:
                raise KeyboardInterrupt
            return real(self)

        monkeypatch.setattr(Engine, "step", step)

    return interrupt


def test_ctrl_c_stops_the_answer_and_not_the_conversation(say, asked, interrupted):
    interrupted(3)
    result = say("hello", "and?", options=("--max-new-tokens", 40))
    assert result.code == 0 and "stopped; " in result.err and len(asked) == 2
    assert asked[1][1]["role"] == "assistant" and result.out.startswith(asked[1][1]["content"])  # what it said is remembered


def test_an_answer_that_said_nothing_is_forgotten_with_its_question(say, asked, interrupted):
    interrupted(1)
    result = say("hello", "and?", options=("--max-new-tokens", 4))
    assert result.code == 0 and "stopped before the first word" in result.err
    assert asked[1] == [{"role": "user", "content": "and?"}]


def test_commands_change_what_is_asked(say, asked, tmp_path):
    file = tmp_path / "f.jsonl"
    lines = (
        "/system s",
        "hello",
        "/set max_tokens 2",
        "/regen",
        "/stats",
        f"/save {file}",
        "/system",
        " /usr is what?",
        "/set seed",
        "/nope",
        "/regen now",
    )
    result = say(*lines, options=("--max-new-tokens", 4))
    assert result.code == 0
    first, again, text, repeated = asked
    assert first == again == [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    assert [one["content"] for one in text][::2] == ["hello", "/usr is what?"] and repeated == text
    (record,) = read_records(file)
    assert record["messages"] == [*first, {"role": "assistant", "content": text[1]["content"]}]
    for told in ("max_tokens 2", "2 answers, 6 tokens", "answer stays the same", "'' is not a number", "there is no command /nope"):
        assert told in result.err


def test_a_failed_regeneration_leaves_the_conversation(say, asked, tmp_path):
    """The tiny target reads 160 tokens."""
    file = tmp_path / "f.jsonl"
    result = say("hello", "/system " + "x" * 200, "/regen", "/system", f"/save {file}", options=("--max-new-tokens", 4))
    assert "shorten the prompt" in result.err and "2 messages" in result.err
    assert "nothing has been said" in say("/regen").err


def test_the_drafts_tokens_are_coloured_and_split_characters_wait():
    """The last token of a step is the target's own."""
    tokenizer = byte_tokenizer()
    ids = tokenizer("aébc", add_special_tokens=False)["input_ids"]
    coloured = ColouredText(tokenizer)
    first = coloured.add(Step(token_ids=tuple(ids[:2]), accepted=1, proposed=3, seconds=0.1))  # a, and half of é
    second = coloured.add(Step(token_ids=tuple(ids[2:]), accepted=1, proposed=3, seconds=0.1))
    assert (first.plain, second.plain) == ("a", "ébc"[: len(second.plain)])
    assert [first.plain[s.start : s.end] for s in first.spans if Style.parse(str(s.style)).color] == ["a"]
    assert [second.plain[s.start : s.end] for s in second.spans if Style.parse(str(s.style)).color] == ["é"]
