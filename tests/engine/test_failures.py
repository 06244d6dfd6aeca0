"""What goes wrong for one request is that request's trouble alone; what goes wrong for a pass
leaves the engine usable."""

from typing import Any

import pytest
import torch

import pard2.engine.cycle
import pard2.engine.scheduler
from engines import DRAFTED, METHODS, is_empty, new_engine, run_dry, shared_target
from pard2 import Engine, SamplingParams
from pard2.engine.statistics import Step
from pard2.errors import Pard2Error
from pard2.models.target import Target
from tiny import greedy, random_prompts, tiny_target

PROMPTS = random_prompts(4, seed=6)


def expected(number: int, count: int = 12) -> list[int]:
    return greedy(shared_target(), PROMPTS[number], count)


def one_line(error: object) -> str:
    assert "\n" not in str(error)
    return str(error)


# --- numbers that are none ----------------------------------------------------------------------------


def poisoned(token: int) -> Target:
    """The shared target, but whoever reads this token computes NaN from then on."""
    target = tiny_target()
    with torch.no_grad():
        target.model.get_input_embeddings().weight[token] = torch.nan  # type: ignore[index]
    return target


def unsaid() -> int:
    """A token in no prompt and no answer."""
    return next(token for token in range(60) if all(token not in prompt + expected(n) for n, prompt in enumerate(PROMPTS)))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 1}, {"repetition_penalty": 1.2}])
@pytest.mark.parametrize("method", METHODS)
def test_nan_in_a_prompt_fails_that_request_alone(method, settings):
    bad = unsaid()
    engine = new_engine(method, "auto" if method == "ar" else 4, poisoned(bad))
    prompts = [PROMPTS[0], [3, bad, 5], PROMPTS[1]]
    outs = engine.generate(
        prompts, [SamplingParams(max_tokens=12), SamplingParams(max_tokens=12, logprobs=2, **settings), SamplingParams(max_tokens=12)]
    )
    assert [outs[0].token_ids, outs[2].token_ids] == [expected(0), expected(1)]
    assert (outs[1].token_ids, outs[1].finish_reason) == ([], "error")
    assert "NaN" in one_line(outs[1].error) and "`dtype` float32" in outs[1].error and "tiny-llama" in outs[1].error
    assert is_empty(engine)
    # Whoever gets the failed one's part of the cache finds none of its numbers.
    assert [out.token_ids for out in engine.generate([PROMPTS[2]] * 3, SamplingParams(max_tokens=12))] == [expected(2)] * 3


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_the_middle_of_an_answer_leaves_what_was_said_before(method):
    place = next(i for i in range(4, 12) if expected(0)[i] not in expected(0)[:i] + PROMPTS[0] + PROMPTS[1] + expected(1))
    engine = new_engine(method, "auto" if method == "ar" else 4, poisoned(expected(0)[place]))
    outs = list(engine.generate(PROMPTS[:2], SamplingParams(max_tokens=12)))
    assert outs[1].token_ids == expected(1)
    assert outs[0].finish_reason == "error" and outs[0].token_ids == expected(0)[: place + 1]
    assert is_empty(engine)


@pytest.mark.parametrize("draft_sampling", ["greedy", "sampled"])
@pytest.mark.parametrize("method", DRAFTED)
def test_a_broken_draft_costs_time_and_nothing_else(method, draft_sampling):
    target = tiny_target()
    engine = new_engine(method, 4, target, draft_sampling=draft_sampling)
    with torch.no_grad():
        (engine.draft.lm_head if method == "eagle3" else engine.draft.lm.get_output_embeddings()).weight.fill_(torch.nan)
    outs = engine.generate([PROMPTS[0], PROMPTS[1]], [SamplingParams(max_tokens=12), SamplingParams(max_tokens=12, temperature=0.9, seed=2)])
    assert outs[0].token_ids == expected(0)
    if draft_sampling == "greedy":
        (plain,) = Engine(target).generate([PROMPTS[1]], SamplingParams(max_tokens=12, temperature=0.9, seed=2))
        assert outs[1].token_ids == plain.token_ids


def test_a_stream_that_fails_raises():
    bad = unsaid()
    seen = []
    with pytest.raises(Pard2Error, match="NaN"):
        for step in new_engine("pard2-td", 3, poisoned(bad)).stream([bad], SamplingParams(max_tokens=5)):
            seen.append(step)
    assert [step.finish_reason for step in seen] == ["error"]


# --- callbacks ----------------------------------------------------------------------------------------


class Raising:
    """Takes `good` steps and then no more."""

    def __init__(self, good: int) -> None:
        self.good = good
        self.seen: list[Step] = []

    def __call__(self, step: Step) -> None:
        if len(self.seen) == self.good:
            raise ValueError("two\nlines")
        self.seen.append(step)


@pytest.mark.parametrize("good", [0, 1, 4])
def test_a_callback_that_raises_ends_its_own_request_alone(good):
    engine = new_engine("pard2-td", 3)
    callback = Raising(good)
    broken = engine.submit(PROMPTS[0], SamplingParams(max_tokens=12), on_step=callback)
    other = engine.submit(PROMPTS[1], SamplingParams(max_tokens=12))
    run_dry(engine)
    (out,) = broken.completions()
    assert (out.finish_reason, len(callback.seen)) == ("error", good)
    assert one_line(out.error) == "the callback raised ValueError: two"
    assert out.token_ids == expected(0)[: len(out.token_ids)]
    assert other.completions()[0].token_ids == expected(1)
    assert is_empty(engine)


def test_a_callback_that_raises_at_the_very_last_step_is_not_passed_over():
    engine = new_engine("ar", "auto")
    broken = engine.submit(PROMPTS[0], SamplingParams(max_tokens=3), on_step=Raising(2))
    run_dry(engine)
    (out,) = broken.completions()
    assert (out.finish_reason, out.token_ids) == ("error", expected(0, 3)) and "ValueError" in out.error


def test_a_callback_of_several_completions_ends_them_all():
    engine = new_engine("ar", "auto", max_batch=2)
    broken = engine.submit(PROMPTS[0], SamplingParams(max_tokens=9, n=4), on_step=Raising(3))
    run_dry(engine)
    assert [out.finish_reason for out in broken.completions()] == ["error"] * 4
    assert is_empty(engine)


# --- cancellation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_cancelled_request_keeps_what_it_has_said(steps):
    engine = new_engine("ar", "auto", max_batch=2)
    cancelled = engine.submit(PROMPTS[0], SamplingParams(max_tokens=12))
    others = [engine.submit(PROMPTS[n], SamplingParams(max_tokens=12)) for n in (1, 2)]
    for _ in range(steps):
        engine.step()
    cancelled.cancel()
    cancelled.cancel()
    (out,) = cancelled.completions()
    assert (out.finish_reason, out.token_ids) == ("cancelled", expected(0)[: steps + 1 if steps else 0])
    run_dry(engine)
    assert [request.completions()[0].token_ids for request in others] == [expected(1), expected(2)]
    assert is_empty(engine) and cancelled.completions()[0].token_ids == out.token_ids


def test_a_request_cancelled_in_the_queue_is_never_read_and_its_callback_hears_of_it():
    engine = new_engine("ar", "auto", max_batch=1)
    first = engine.submit(PROMPTS[0], SamplingParams(max_tokens=5))
    seen: list[Step] = []
    waiting = engine.submit(PROMPTS[1], SamplingParams(max_tokens=5), on_step=seen.append)
    engine.step()
    waiting.cancel()
    run_dry(engine)
    assert first.completions()[0].token_ids == expected(0, 5)
    assert [(step.token_ids, step.finish_reason) for step in seen] == [((), "cancelled")]


def test_cancelling_what_is_done_changes_nothing():
    engine = new_engine("ar", "auto")
    request = engine.submit(PROMPTS[0], SamplingParams(max_tokens=4))
    run_dry(engine)
    request.cancel()
    assert request.completions()[0].finish_reason == "length"


def test_completions_of_a_request_that_is_not_done():
    with pytest.raises(ValueError, match="not done"):
        new_engine("ar", "auto").submit(PROMPTS[0]).completions()


# --- passes that fail ---------------------------------------------------------------------------------


def fail_once(monkeypatch: pytest.MonkeyPatch, place: object, name: str, error: BaseException, after: int = 0) -> None:
    """Have the method work `after` times, fail, and work again."""
    method = getattr(place, name)
    calls = 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise error
        return method(*arguments, **named)

    monkeypatch.setattr(place, name, failing)


@pytest.mark.parametrize("where", ["target, prompt", "target, cycle", "draft", "choice", "admission"])
@pytest.mark.parametrize("method", ["vsd", "pard2-td"])
def test_a_pass_that_fails_ends_who_took_part_and_the_engine_goes_on(method, where, monkeypatch):
    engine = new_engine(method, 3, tiny_target(), max_batch=2)
    error = RuntimeError("broken\nin many\nlines")
    if where == "target, prompt":
        fail_once(monkeypatch, engine.target, "run", error)
    elif where == "target, cycle":
        fail_once(monkeypatch, engine.target, "run", error, after=2)
    elif where == "draft":
        fail_once(monkeypatch, engine._cycle._drafter, "propose", error, after=3)
    elif where == "choice":
        fail_once(monkeypatch, pard2.engine.cycle, "verify", error, after=2)
    else:
        fail_once(monkeypatch, pard2.engine.scheduler, "TokenCounts", error)
    penalised = SamplingParams(max_tokens=12, repetition_penalty=1.0001)
    requests = [engine.submit(prompt, penalised) for prompt in PROMPTS]
    with pytest.raises(RuntimeError, match="broken"):
        run_dry(engine)
    failed = [request.completions()[0] for request in requests if request.done]
    assert 1 <= len(failed) <= 2 and {out.finish_reason for out in failed} == {"error"}
    assert one_line(failed[0].error) == "decoding stopped, RuntimeError: broken"
    assert not engine._scheduler.sequences and engine.free_cache_tokens == engine.cache_tokens
    # Those that waited are not concerned, nor is who comes later.
    run_dry(engine)
    rest = [request.completions()[0].token_ids for request in requests[len(failed) :]]
    assert rest == [expected(n) for n in range(len(failed), 4)]
    assert [out.token_ids for out in engine.generate(PROMPTS, SamplingParams(max_tokens=12))] == [expected(n) for n in range(4)]
    assert is_empty(engine)


def test_out_of_memory_is_told_with_the_way_out(monkeypatch):
    engine = new_engine("pard2-td", 3, tiny_target())
    fail_once(monkeypatch, engine.target, "run", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n20 GiB"), after=2)
    with pytest.raises(Pard2Error, match="ran out of memory.*`max_batch`.*`cache_tokens`") as raised:
        engine.generate(PROMPTS, SamplingParams(max_tokens=12))
    one_line(raised.value)
    assert is_empty(engine)
    assert engine.generate([PROMPTS[0]], SamplingParams(max_tokens=12))[0].token_ids == expected(0)


def test_a_cache_that_does_not_fit_is_told_with_the_way_out(monkeypatch):
    engine = new_engine("ar", "auto", tiny_target(), cache_tokens=2**50)
    with pytest.raises(Pard2Error, match="does not fit.*`cache_tokens`"):
        engine.generate([PROMPTS[0]], SamplingParams(max_tokens=4))
    assert engine.idle


def test_a_stream_learns_that_anothers_pass_has_failed(monkeypatch):
    engine = new_engine("ar", "auto", tiny_target())
    first, second = (engine.stream(PROMPTS[n], SamplingParams(max_tokens=12)) for n in (0, 1))
    next(first), next(second)
    fail_once(monkeypatch, engine.target, "run", RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        list(first)
    with pytest.raises(Pard2Error, match="decoding stopped.*broken"):
        list(second)
    assert is_empty(engine)


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([[1], []], SamplingParams(), "empty"),
        ([[1], [61]], SamplingParams(), "token id 61"),
        ([[1], [1] * 300], SamplingParams(), "300 tokens"),
        ([[1], [2]], [SamplingParams()], "2 prompts and 1 SamplingParams"),
        ([[1], [2]], SamplingParams(logit_bias={61: 1.0}), "`logit_bias` names token 61"),
        ([[1], [2]], [SamplingParams(), SamplingParams(stop="x")], "`stop` needs a tokenizer"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_anything_begins(prompts, params, message):
    engine = new_engine("ar", "auto")
    with pytest.raises(Pard2Error, match=message) as raised:
        engine.generate(prompts, params)
    one_line(raised.value)
    assert is_empty(engine)


def test_settings_are_refused_where_they_are_made():
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"n": 0}, {"stop": ["x"] * 17}, {"logprobs": 21}, {"seed": -1}, {"max_tokens": 0}):
        with pytest.raises(Pard2Error, match=f"`{next(iter(wrong))}`"):
            SamplingParams(**wrong)
