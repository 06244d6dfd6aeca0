"""Later turns of a suite: they are asked after the target's own answer to the earlier ones."""

from dataclasses import replace

import pytest
from bench_plans import chat_target, plan

from pard2.bench.runner import Runner
from pard2.bench.suites import Suite, read_suites
from pard2.bench.turns import encode_suite
from pard2.engine.engine import Engine
from pard2.engine.prompts import encode_prompt
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def target():
    return chat_target()


def talk():
    return Suite("talk", ("a", "a2", "b", "a3"), (user("first"), user("second"), user("alone"), user("third")), "there", (None, 0, None, 1))


def test_a_later_turn_is_asked_without_the_answer_or_after_another(target):
    first, second, alone, third = encode_suite(talk(), target, 6)
    engine, params = Engine(target, None, "ar", max_batch=1), SamplingParams(max_tokens=6)
    assert (first, alone) == (encode_prompt(target, user("first")), encode_prompt(target, user("alone")))
    said = {"role": "assistant", "content": engine.generate([first], params)[0].text}
    messages = [*user("first"), said, *user("second")]
    assert said["content"] and second == encode_prompt(target, messages)
    again = {"role": "assistant", "content": engine.generate([second], params)[0].text}
    assert third == encode_prompt(target, [*messages, again, *user("third")])


def test_arguments_of_the_template_are_lost(target):
    suite = Suite("s", ("a", "b"), ({"messages": user("x"), "chat_template_kwargs": {"n": 1}}, {"messages": user("y")}), "there", (None, 0))
    assert len(encode_suite(suite, target, 4)) == 2


def test_a_plan_measures_both_turns(target):
    work = replace(plan(talk(), methods=()), max_new_tokens=6)
    runner = Runner(work, target, {})
    assert [len(runner.measure(chunk, lambda _: None)) for chunk in work.chunks()] == [1] * 4
    two = Suite("talk", ("a", "a2"), (user("first"), user("second")), "there", (None, 0))
    assert two.digest != replace(two, follows=()).digest  # the first of all has the number 0
    assert talk().digest != replace(talk(), follows=()).digest == replace(talk(), follows=(None,) * 4).digest


def test_a_record_that_does_not_fit_is_not_named(target):
    with pytest.raises(Pard2Error, match="record a2: "):
        encode_suite(replace(talk(), prompts=(user("first"), user("long " * 5000), user("x"), user("y"))), target, 6)


def test_turns_of_a_file_are_not_seen(tmp_path):
    (tmp_path / "eval_talk.jsonl").write_text(
        '{"id": "a", "messages": [{"role": "user", "content": "one"}], "turns": ["one", "two", "three"]}\n'
        '{"id": "b", "messages": [{"role": "user", "content": "alone"}], "turns": ["alone"]}\n'
        '{"id": "c", "messages": [{"role": "user", "content": "other"}], "turns": [{"role": "user"}, {"role": "user"}]}\n'
    )
    (suite,) = read_suites([tmp_path / "eval_talk.jsonl"])
    assert suite.ids == ("a", "a-2", "a-3", "b", "c") and suite.follows == (None, 0, 1, None, None)
    assert [prompt[0]["content"] for prompt in suite.prompts] == ["one", "two", "three", "alone", "other"]
    assert read_suites([tmp_path / "eval_talk.jsonl"], most=1)[0].follows == ()
