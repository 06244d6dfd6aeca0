"""What a caller hands over is checked and copied at once: a mistake is the caller's alone, and
nobody else's text ends for it."""

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch

from chat_tokenizer import VOCABULARY, byte_tokenizer
from engines import is_empty, new_engine, run_dry
from pard2 import Engine, SamplingParams
from pard2.engine.prompts import encode_prompt
from pard2.errors import Pard2Error
from pard2.models.target import Target
from tiny import greedy, tiny_target

USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def target() -> Target:
    target = tiny_target(vocab=VOCABULARY, context=128)
    target.tokenizer = byte_tokenizer(special=["<more>", "<most>"])  # ids 258 and 259; the model ends at 258
    return target


def with_template(target: Target, template: str) -> Target:
    other = Target(target.model, byte_tokenizer(template), "other")
    return other


# Prompts, and what the one line that refuses them says.
PROMPTS: list[tuple[Any, str]] = [
    (None, "None"),
    (5, "int"),
    (b"hi", "bytes"),
    ((1, 2), "tuple"),
    (torch.tensor([1, 2]), "Tensor"),
    ([1, 2.0], "float"),
    ([True, False], "bool"),
    ([1, "a"], "str"),
    ([1, None], "None"),
    ([1, [2]], "list"),
    (["hi", "ho"], "str"),
    ([1, 10**30], f"token id {10**30}"),
    ([VOCABULARY], f"token id {VOCABULARY}"),
    ([-1], "token id -1"),
    ("a<most>", "token id 259.*embedding"),
    ([USER | {"content": "<most>"}], "token id 259.*embedding"),
    ("a\ud83d", "surrogate"),
    ([USER | {"content": "a\udcff"}], "surrogate"),
    ([{"content": "hi"}], "message 1.*role"),
    ([{"role": "user"}], "message 1.*content"),
    ([USER, {"role": "user", "content": None}], "message 2.*content"),
    ([{"role": "user", "content": 5}], "content"),
    ([{"role": 5, "content": "hi"}], "role"),
    ([{"role": "user", "content": [{"type": "image"}]}], "image"),
    ([USER, "hi"], "message 2"),
    ([USER, 5], "message 2"),
    ({"a": 1}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [USER], "tools": 5}, "tools"),
    (USER, r"\[\.\.\.\]"),
    ("", "empty"),
    ([], "empty"),
    ({}, "empty"),
]
# Settings in place of SamplingParams.
PARAMS: list[tuple[Any, str]] = [(0, "int"), ({}, "dict"), ({"max_tokens": 3}, "dict"), ("x", "str"), (True, "bool")]


@pytest.mark.parametrize(("prompt", "says"), PROMPTS, ids=[repr(prompt)[:40] for prompt, _ in PROMPTS])
def test_a_prompt_that_is_none_is_refused_and_its_neighbour_goes_on(target, prompt, says):
    engine = Engine(target)
    neighbour = engine.submit([4, 5], SamplingParams(max_tokens=6))
    engine.step()
    for call in (engine.submit, engine.stream, engine.astream, lambda prompt: engine.generate([[4, 5], prompt])):
        with pytest.raises(Pard2Error, match=says) as refusal:
            call(prompt)
        assert "\n" not in str(refusal.value)
    run_dry(engine)
    assert neighbour.completions()[0].token_ids == greedy(target, [4, 5], 6) and is_empty(engine)


@pytest.mark.parametrize(("params", "says"), PARAMS, ids=repr)
def test_settings_that_are_none_are_refused_and_do_not_count_as_the_default(params, says):
    engine = new_engine("ar")
    for call in (engine.submit, engine.stream, engine.astream, lambda prompt, params: engine.generate([prompt, prompt], [SamplingParams(), params])):
        with pytest.raises(Pard2Error, match=f"SamplingParams.*{says}"):
            call([4, 5], params)
    with pytest.raises(Pard2Error, match="SamplingParams"):
        engine.generate([[4, 5]], params)
    assert is_empty(engine)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (None, "^`prompts` is a text, a conversation or a list of them, and not NoneType$"),
        (5, "^`prompts` is .* and not int$"),
        (b"hi", "^`prompts` is .* and not bytes$"),
        ({"a": 1}, "^a prompt that is a dict needs `messages`; a single message"),
        (USER, r"a single message is wrapped in \[\.\.\.\]$"),
        ([4, 5], r"^prompt 0: a prompt is a text, .* and not int; the token ids of a single prompt are wrapped in \[\.\.\.\]$"),
        ([5], "^a prompt is a text, .* and not int"),
        ([None], "^a prompt is a text, .* and not None"),
        ([{"role": "user"}], "message 1 of `messages` has no `content` text$"),
    ],
    ids=repr,
)
def test_what_is_neither_one_prompt_nor_several_is_told_what_it_is(target, prompts, says):
    with pytest.raises(Pard2Error, match=says):
        Engine(target).generate(prompts)


@pytest.mark.parametrize("prompt", ["hi", [USER], [USER, USER], {"messages": [USER]}], ids=repr)
def test_one_prompt_may_stand_in_place_of_a_list(target, prompt):
    engine, params = Engine(target), SamplingParams(max_tokens=6, n=2, temperature=1.0, seed=1)
    alone, listed = engine.generate(prompt, params), engine.generate([prompt], params)
    assert [one.token_ids for one in alone] == [one.token_ids for one in listed] and len(alone) == 2


def test_a_prompt_of_many_is_refused_by_its_number():
    with pytest.raises(Pard2Error, match="^prompt 2: the prompt is empty"):
        new_engine("ar").generate([[1], [2], []])


@pytest.mark.parametrize("template", ["", "{% if false %}x{% endif %}"], ids=["empty", "shows nothing"])
def test_a_template_that_shows_nothing_is_no_prompt(target, template):
    engine = Engine(with_template(target, template or "{{ '' }}"))
    with pytest.raises(Pard2Error, match="empty.*template"):
        engine.submit("hi")


def test_a_message_is_read_as_a_record_of_a_file_is(target):
    text = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    for same in ([USER], {"messages": [USER]}, [{"role": "user", "content": text, "name": None}], [{"from": "human", "value": "hi"}]):
        assert encode_prompt(target, same) == encode_prompt(target, "hi")


@pytest.mark.parametrize("change", [lambda ids: ids.append(9), lambda ids: ids.clear(), lambda ids: ids.__setitem__(0, 10**6)])
def test_a_list_that_the_caller_changes_afterwards_is_no_longer_the_prompt(change):
    engine = new_engine("pard2-td")
    ids = [4, 5]
    request = engine.submit(ids, SamplingParams(max_tokens=6))
    change(ids)
    run_dry(engine)
    (out,) = request.completions()
    assert (out.token_ids, out.prompt_tokens) == (greedy(engine.target, [4, 5], 6), 2)


# --- settings -----------------------------------------------------------------------------------------


BIASED = SamplingParams(logit_bias={1: 2.0, 3: -1.0}, stop=["a"])


@pytest.mark.parametrize(
    "change",
    [
        lambda bias: bias.__setitem__(10**6, 1.0),
        lambda bias: bias.__delitem__(1),
        lambda bias: bias.update({5: 1.0}),
        lambda bias: bias.setdefault(5, 1.0),
        lambda bias: bias.pop(1),
        lambda bias: bias.popitem(),
        lambda bias: bias.clear(),
        lambda bias: bias.__ior__({5: 1.0}),
    ],
)
def test_a_bias_cannot_be_changed_after_it_was_checked(change):
    with pytest.raises(TypeError, match="new SamplingParams"):
        change(BIASED.logit_bias)
    assert BIASED.logit_bias == {1: 2.0, 3: -1.0}


def test_settings_are_values():
    same = SamplingParams(logit_bias={3: -1.0, 1: 2.0}, stop=("a",))
    assert same == BIASED and hash(same) == hash(BIASED) and len({same, BIASED, SamplingParams()}) == 2
    for copied in (copy.deepcopy(BIASED), copy.copy(BIASED), pickle.loads(pickle.dumps(BIASED)), dataclasses.replace(BIASED)):
        assert copied == BIASED and hash(copied) == hash(BIASED)
    assert dataclasses.asdict(BIASED)["logit_bias"] == {1: 2.0, 3: -1.0}


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"max_batch": 1.5}, "`max_batch` 1.5"),
        ({"max_batch": "2"}, "`max_batch` 2"),
        ({"max_batch": None}, "`max_batch` None"),
        ({"max_batch": True}, "`max_batch` True"),
        ({"max_batch": 0}, "`max_batch` 0"),
        ({"cache_tokens": "x"}, "`cache_tokens` x"),
        ({"cache_tokens": 2**70}, "`cache_tokens`"),
        ({"cache_tokens": 1}, "`cache_tokens` 1"),
        ({"cache_tokens": 64.0}, "`cache_tokens` 64.0"),
        ({"draft_tokens": True}, "`draft_tokens` True"),
        ({"draft_tokens": "many"}, "`draft_tokens` 'many'"),
        ({"draft_tokens": 2.0}, "`draft_tokens` 2.0"),
        ({"draft_tokens": None}, "`draft_tokens` None"),
        ({"draft_sampling": []}, "`draft_sampling`"),
        ({"verification": 5}, "`verification`"),
    ],
    ids=str,
)
def test_an_engines_options_are_checked_before_anything_is_made(options, flag):
    with pytest.raises(Pard2Error, match=f"^{flag}"):
        new_engine("vsd", **{"draft_tokens": 3} | options)


# --- what is found out on the way ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ar", "pard2-ti"])
def test_a_tokenizer_that_fails_on_a_token_ends_the_text_that_says_it_alone(target, method, monkeypatch):
    """As SentencePiece's does for the padding of a vocabulary."""
    expected = [greedy(target, prompt, 8) for prompt in ([4, 5], [7, 9])]
    place = next(i for i, token in enumerate(expected[0]) if token not in expected[0][:i] + expected[1] and i > 2)
    bad = Target(target.model, byte_tokenizer(), "bad")
    known = type(bad.tokenizer).convert_ids_to_tokens

    def failing(self, ids, *rest, **named):
        if ids == expected[0][place]:
            raise IndexError("piece id is out of range.\nhelp")
        return known(self, ids, *rest, **named)

    monkeypatch.setattr(type(bad.tokenizer), "convert_ids_to_tokens", failing)
    engine = new_engine(method, 3, bad) if method != "ar" else Engine(bad)
    first, second = engine.generate([[4, 5], [7, 9]], SamplingParams(max_tokens=8))
    assert (first.finish_reason, second.finish_reason, second.token_ids) == ("error", "length", expected[1])
    assert "out of range" in first.error and "\n" not in first.error
    assert first.token_ids == expected[0][: len(first.token_ids)] and is_empty(engine)
