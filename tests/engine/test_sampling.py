"""Sampling settings: what is refused, and by which flag."""

import math

import pytest

from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error

NAN = math.nan


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ("`max_tokens`", {"max_tokens": 0}),
        ("`max_tokens`", {"max_tokens": 2.5}),
        ("`temperature`", {"temperature": -0.1}),
        ("`temperature`", {"temperature": NAN}),
        ("`temperature`", {"temperature": math.inf}),
        ("`temperature`", {"temperature": 1e-30}),  # would divide logits to infinity
        ("`temperature`", {"temperature": "hot"}),
        ("`top_k`", {"top_k": -2}),
        ("`min_tokens`", {"min_tokens": -1}),
        ("`min_tokens`", {"min_tokens": 9, "max_tokens": 8}),
        ("`stop_token_ids`", {"stop_token_ids": 5}),
        ("`stop_token_ids`", {"stop_token_ids": [-1]}),
        ("`stop_token_ids`", {"stop_token_ids": ["5"]}),
        ("`stop_token_ids`", {"stop_token_ids": "5"}),
        ("`include_stop_str_in_output`", {"include_stop_str_in_output": 1}),
        ("`top_k`", {"top_k": True}),
        ("`top_p`", {"top_p": 0.0}),
        ("`top_p`", {"top_p": 1.01}),
        ("`top_p`", {"top_p": NAN}),
        ("`min_p`", {"min_p": -0.01}),
        ("`min_p`", {"min_p": 1.01}),
        ("`min_p`", {"min_p": NAN}),
        ("`repetition_penalty`", {"repetition_penalty": 0.0}),
        ("`repetition_penalty`", {"repetition_penalty": -1.0}),
        ("`repetition_penalty`", {"repetition_penalty": NAN}),
        ("`repetition_penalty`", {"repetition_penalty": math.inf}),
        ("`presence_penalty`", {"presence_penalty": 2.1}),
        ("`presence_penalty`", {"presence_penalty": NAN}),
        ("`frequency_penalty`", {"frequency_penalty": -2.1}),
        ("`frequency_penalty`", {"frequency_penalty": NAN}),
        ("`logit_bias`", {"logit_bias": {3: 101.0}}),
        ("`logit_bias`", {"logit_bias": {3: NAN}}),
        ("`logit_bias`", {"logit_bias": {3: -math.inf}}),
        ("`logit_bias`", {"logit_bias": {-1: 1.0}}),
        ("`logit_bias`", {"logit_bias": {"3": 1.0}}),
        ("`seed`", {"seed": -1}),
        ("`seed`", {"seed": 2**63}),
        ("`n`", {"n": 0}),
        ("`n`", {"n": 129}),
        ("`stop`", {"stop": ""}),
        ("`stop`", {"stop": ["end", ""]}),
        ("`stop`", {"stop": "x" * 257}),
        ("`stop`", {"stop": [str(i) for i in range(17)]}),
        ("`stop`", {"stop": [7]}),
        ("`stop`", {"stop": 5}),
        ("`logit_bias`", {"logit_bias": 5}),
        ("`logit_bias`", {"logit_bias": [1]}),
        ("`logit_bias`", {"logit_bias": {1: "much"}}),
        ("`logit_bias`", {"logit_bias": {True: 1.0}}),
        ("`temperature`", {"temperature": ["a\nb"] * 100}),
        ("`ignore_eos`", {"ignore_eos": "no"}),
        ("`logprobs`", {"logprobs": -1}),
        ("`logprobs`", {"logprobs": 21}),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line_by_its_flag(flag, settings):
    with pytest.raises(Pard2Error) as refusal:
        SamplingParams(**settings)
    message = str(refusal.value)
    assert message.startswith(f"{flag} ") and "\n" not in message


def test_the_ends_of_every_range_are_accepted():
    SamplingParams(
        max_tokens=1,
        temperature=1e5,
        top_k=10**9,
        top_p=1,
        min_p=1,
        repetition_penalty=1e-5,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={0: -100, 5: 100.0},
        seed=2**63 - 1,
        n=128,
        stop=["x" * 256] * 16,
        logprobs=20,
        min_tokens=1,
        stop_token_ids=[0, 2**31],
    )
    SamplingParams(temperature=1e-5, min_p=0, seed=0, stop=[], logprobs=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": "0.5"}, "`temperature` '0.5', a str: give 0 (greedy) or a number from 0.00001 to 100000"),
        ({"max_tokens": None}, "`max_tokens` None: give a whole number; at least 1 is needed"),
        ({"top_k": True}, "`top_k` True, a bool: give the number of tokens to keep; 0 and -1 are off"),
        ({"min_tokens": 5, "max_tokens": 4}, "`min_tokens` 5: give no more than `max_tokens`, 4"),
    ],
)
def test_a_type_that_is_wrong_is_said(settings, said):
    with pytest.raises(Pard2Error) as refusal:
        SamplingParams(**settings)
    assert str(refusal.value) == said


def test_all_settings_are_given_by_name():
    with pytest.raises(TypeError):
        SamplingParams(0.5)


def test_what_is_off_in_vllm_is_off():
    assert SamplingParams(top_k=-1, temperature=1.0, stop=None, stop_token_ids=None, min_tokens=0).processed is False


def test_one_stop_text_is_not_taken_for_a_list_of_characters():
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams().stop == ()


def test_a_bias_changed_after_validation_does_not_get_in():
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 1e9
    assert params.logit_bias == {1: 2.0}


def test_a_bias_of_a_token_past_the_vocabulary_is_refused_before_it_indexes_anything():
    params = SamplingParams(logit_bias={60: 1.0, 61: 1.0})
    params.check_vocabulary(62)
    with pytest.raises(Pard2Error, match="^`logit_bias` names token 61: the vocabulary ends at 60$"):
        params.check_vocabulary(61)


def test_more_alternatives_than_tokens_are_refused_before_a_pass_fails_for_everybody():
    SamplingParams(logprobs=10).check_vocabulary(10)
    with pytest.raises(Pard2Error, match="^`logprobs` 10: the vocabulary has 9 tokens$"):
        SamplingParams(logprobs=10).check_vocabulary(9)


def test_nothing_is_processed_that_needs_no_processing():
    assert not SamplingParams().processed
    assert not SamplingParams(temperature=1.0).processed
    assert not SamplingParams(top_k=5, top_p=0.5, min_p=0.1).processed  # greedy: its choice survives every cut
    assert not SamplingParams(logit_bias={}).processed
    for settings in ({"temperature": 0.5}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0, "min_p": 0.5}):
        assert SamplingParams(**settings).processed
    for settings in ({"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": -0.1}):
        assert SamplingParams(**settings).penalised and SamplingParams(**settings).processed
    assert SamplingParams(logit_bias={1: 1.0}).processed and not SamplingParams(logit_bias={1: 1.0}).penalised
    assert SamplingParams().greedy and not SamplingParams(temperature=0.1).greedy
