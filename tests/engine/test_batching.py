"""Many sequences at once: what one says does not depend on the others, all get through, and none
takes more than its share."""

from functools import cache
from typing import Any

import pytest

import pard2.engine.cycle
import pard2.engine.drafters.autoregressive
import pard2.engine.drafters.parallel
import pard2.engine.scheduler
from engines import DRAFTED, METHODS, is_empty, new_engine, record_proposals, run_dry, shared_target
from pard2 import Engine, SamplingParams
from pard2.engine.draft_length.acceptance import Acceptance
from pard2.errors import Pard2Error
from tiny import greedy, perfect_draft, random_prompts, tiny_draft, tiny_target

PROMPTS = random_prompts(6, seed=3)
# Every one by other settings and of another length.
PARAMS = [
    SamplingParams(max_tokens=14),
    SamplingParams(max_tokens=9, temperature=1.0, seed=1),
    SamplingParams(max_tokens=17, temperature=0.7, top_k=20, repetition_penalty=1.3, seed=2),
    SamplingParams(max_tokens=5, repetition_penalty=1.5, frequency_penalty=0.5),
    SamplingParams(max_tokens=12, temperature=1.5, top_p=0.8, min_p=0.02, logit_bias={7: 3.0}, seed=3),
    SamplingParams(max_tokens=1, temperature=2.0, presence_penalty=1.0, seed=4),
]


def texts(engine: Engine, prompts: list[list[int]] = PROMPTS, params: Any = PARAMS) -> list[list[int]]:
    return [out.token_ids for out in engine.generate(prompts, params)]


@cache
def plain() -> list[list[int]]:
    """What the target says to each prompt alone."""
    return [texts(new_engine("ar", "auto", max_batch=1), [prompt], one)[0] for prompt, one in zip(PROMPTS, PARAMS, strict=True)]


def test_the_requests_are_worth_testing_with():
    assert plain()[0] == greedy(shared_target(), PROMPTS[0], 14)
    assert [len(text) for text in plain()] == [one.max_tokens for one in PARAMS]
    for text, prompt in zip(plain()[1:], PROMPTS[1:], strict=True):
        assert text != greedy(shared_target(), prompt, len(text)), "the settings change nothing"


# --- what shares the batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("draft_tokens", [1, 4, "auto"])
@pytest.mark.parametrize("method", METHODS)
def test_a_text_is_that_of_plain_decoding_alone_whatever_method_k_and_batch(method, draft_tokens):
    """With greedy proposals a seeded text, too, depends on its seed alone."""
    if method == "ar" and draft_tokens != "auto":
        pytest.skip("has no draft")
    engine = new_engine(method, draft_tokens)
    assert texts(engine) == plain()
    assert texts(engine, PROMPTS[::-1], PARAMS[::-1]) == plain()[::-1]
    assert is_empty(engine)


@pytest.mark.parametrize("method", METHODS)
def test_who_joins_later_disturbs_nobody(method):
    engine = new_engine(method, "auto" if method == "ar" else 3)
    requests = []
    for prompt, params in zip(PROMPTS, PARAMS, strict=True):
        requests.append(engine.submit(prompt, params))
        engine.step()
        engine.step()
    run_dry(engine)
    assert [request.completions()[0].token_ids for request in requests] == plain()


@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("method", DRAFTED)
def test_drawn_proposals_give_the_same_text_in_any_batch(method, verification):
    options: dict[str, Any] = {"draft_sampling": "sampled", "verification": verification}
    alone = [texts(new_engine(method, 4, max_batch=1, **options), [p], one)[0] for p, one in zip(PROMPTS, PARAMS, strict=True)]
    assert texts(new_engine(method, 4, **options)) == alone
    assert texts(new_engine(method, 4, max_batch=2, **options), PROMPTS[::-1], PARAMS[::-1]) == alone[::-1]
    assert [alone[0], alone[3]] == [plain()[0], plain()[3]], "greedy requests depend on no draft"


# --- one after the other ------------------------------------------------------------------------------


def test_completions_come_in_the_order_of_the_prompts_though_short_ones_are_done_first():
    outs = list(
        new_engine("ar", "auto").generate(PROMPTS[:3], [SamplingParams(max_tokens=12), SamplingParams(max_tokens=1), SamplingParams(max_tokens=4)])
    )
    assert [len(out.token_ids) for out in outs] == [12, 1, 4]
    assert [out.prompt_tokens for out in outs] == [len(prompt) for prompt in PROMPTS[:3]]


def test_a_place_in_the_batch_is_taken_as_soon_as_it_is_free():
    """Two places, answers of 2, 8, 2, 2 and 2 tokens: the short ones pass through one place while the
    long one holds the other."""
    engine = new_engine("ar", "auto", max_batch=2)
    outs = list(engine.generate(PROMPTS[:5], [SamplingParams(max_tokens=n) for n in (2, 8, 2, 2, 2)]))
    assert sum(out.stats.cycles for out in outs) == 11
    assert engine.totals.cycles == 7  # those of the long answer, and none for the others alone


@pytest.mark.parametrize("max_batch", [1, 3])
def test_never_more_sequences_than_max_batch(max_batch):
    engine = new_engine("pard2-td", 4, max_batch=max_batch)
    seen = []
    for prompt, params in zip(PROMPTS, PARAMS, strict=True):
        engine.submit(prompt, params, on_step=lambda step: seen.append(len(engine._scheduler.sequences)))
    run_dry(engine)
    assert max(seen) == max_batch


@pytest.mark.parametrize("method", METHODS)
def test_who_finds_no_memory_waits_and_everybody_gets_through(method):
    """The cache holds the largest request and little else."""
    most = max(len(prompt) + params.max_tokens for prompt, params in zip(PROMPTS, PARAMS, strict=True))
    engine = new_engine(method, "auto" if method == "ar" else 4, cache_tokens=most + 7)
    assert texts(engine) == plain()
    assert is_empty(engine)


def test_a_small_request_does_not_overtake_a_large_one_for_ever():
    engine = new_engine("ar", "auto", cache_tokens=60)
    small = [engine.submit([1, 2], SamplingParams(max_tokens=8)) for _ in range(3)]
    large = engine.submit([3] * 20, SamplingParams(max_tokens=30))
    late = engine.submit([1, 2], SamplingParams(max_tokens=8))
    while not large.done:
        engine.step()
        assert not late.sequences[0].tokens or large.sequences[0].tokens
    assert all(request.done for request in small)
    run_dry(engine)
    assert late.completions()[0].token_ids == small[0].completions()[0].token_ids


def test_a_request_larger_than_the_cache_is_refused_and_one_that_fills_it_is_not():
    engine = new_engine("pard2-ti", 4, cache_tokens=30)
    with pytest.raises(
        Pard2Error, match=r"prompt of 20 tokens and an answer of 11 do not fit the cache of 30.*`max_tokens`.*`cache_tokens`"
    ) as raised:
        engine.generate([[1, 2], [1] * 20], SamplingParams(max_tokens=11))
    assert "\n" not in str(raised.value) and engine.idle
    assert texts(engine, [[1] * 20], SamplingParams(max_tokens=10)) == [greedy(shared_target(), [1] * 20, 10)]


def test_a_thousand_waiting_requests_do_not_slow_a_step_down():
    """The queue must not be searched again in every step: steps would cost what all who wait cost."""
    engine = new_engine("ar", "auto", max_batch=1)
    for _ in range(1000):
        engine.submit([1], SamplingParams(max_tokens=2))
    looked_at = 0

    def count(request: Any) -> None:
        nonlocal looked_at
        looked_at += 1

    report, pard2.engine.request.Request.report = pard2.engine.request.Request.report, count
    try:
        for _ in range(5):
            engine.step()
    finally:
        pard2.engine.request.Request.report = report
    assert looked_at < 40


def test_equal_requests_are_told_apart():
    """Compared field by field, two requests of one prompt and seed would be one, or tensors be
    asked whether they are true."""
    engine = new_engine("pard2-td", 4, max_batch=2)
    requests = [engine.submit([4, 5, 6], SamplingParams(max_tokens=6, temperature=1.0, repetition_penalty=1.1, seed=3)) for _ in range(4)]
    run_dry(engine)
    assert len({tuple(request.completions()[0].token_ids) for request in requests}) == 1


# --- several completions ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ar", "vsd", "pard2-td"])
def test_n_completions_differ_by_their_index_alone(method):
    params = SamplingParams(max_tokens=10, temperature=1.0, seed=5, n=5)
    expected = list(new_engine("ar", "auto").generate(PROMPTS[:2], params))
    # More than fit at once, and beside others.
    outs = list(new_engine(method, "auto", max_batch=3).generate(PROMPTS[:2], params))
    assert [out.index for out in outs] == [0, 1, 2, 3, 4] * 2
    assert [out.token_ids for out in outs] == [out.token_ids for out in expected]
    assert len({tuple(out.token_ids) for out in outs}) == 10
    (first,) = new_engine(method, "auto").generate(PROMPTS[:1], SamplingParams(max_tokens=10, temperature=1.0, seed=5))
    assert first.token_ids == outs[0].token_ids, "the first completion is what one alone would be"


def test_without_a_seed_each_request_draws_its_own():
    outs = new_engine("ar", "auto").generate([PROMPTS[0]] * 2, SamplingParams(max_tokens=12, temperature=1.0, n=2))
    assert len({tuple(out.token_ids) for out in outs}) == 4


# --- long prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rows", "pending"), [(1, 1), (5, 3), (7, 100)])
def test_prompts_read_in_chunks_give_the_same_texts(method, rows, pending, monkeypatch):
    monkeypatch.setattr(pard2.engine.scheduler, "PREFILL_TOKENS", rows)
    for drafter in (pard2.engine.drafters.parallel, pard2.engine.drafters.autoregressive):
        monkeypatch.setattr(drafter, "MOST_PENDING", pending)
    engine = new_engine(method, "auto" if method == "ar" else 4)
    outs = engine.generate(PROMPTS, PARAMS)
    assert [out.token_ids for out in outs] == plain()


@pytest.mark.parametrize("method", DRAFTED)
def test_a_draft_that_reads_in_chunks_guesses_as_well(method, monkeypatch):
    """A chunk's first token needs the feature of the last one of the chunk before."""
    engine = new_engine(method, 4, tiny_target())
    whole = record_proposals(engine)
    expected = texts(engine, [PROMPTS[1]], SamplingParams(max_tokens=14))
    monkeypatch.setattr(pard2.engine.scheduler, "PREFILL_TOKENS", 4)
    for drafter in (pard2.engine.drafters.parallel, pard2.engine.drafters.autoregressive):
        monkeypatch.setattr(drafter, "MOST_PENDING", 3)
    engine = new_engine(method, 4, tiny_target())
    chunked = record_proposals(engine)
    assert texts(engine, [PROMPTS[1]], SamplingParams(max_tokens=14)) == expected
    assert len(PROMPTS[1]) > 8 and chunked == whole != []


def test_running_sequences_go_on_between_the_chunks_of_a_long_prompt(monkeypatch):
    monkeypatch.setattr(pard2.engine.scheduler, "PREFILL_TOKENS", 8)
    engine = new_engine("pard2-td", 2)
    running = engine.submit(PROMPTS[0][:8], SamplingParams(max_tokens=40))
    engine.step()
    long = engine.submit([7, 9] * 24, SamplingParams(max_tokens=4))
    said = []
    while not long.sequences[0].tokens:
        engine.step()
        said.append(len(running.sequences[0].tokens))
    assert len(said) == 6 and said == sorted(set(said)), "it waited"
    run_dry(engine)
    assert long.completions()[0].token_ids == greedy(shared_target(), [7, 9] * 24, 4)


# --- draft length -------------------------------------------------------------------------------------


class Told:
    """In place of `AdaptiveDraftLength`: cycle by cycle the k that it was told, as far as there is room."""

    def __init__(self, *ks: int) -> None:
        self._ks = list(ks)

    def acceptance(self) -> Acceptance:
        return Acceptance(6, Acceptance(6))

    def choose(self, acceptances: list[Acceptance], limits: list[int], backlog: list[int]) -> list[int]:
        k = self._ks.pop(0) if len(self._ks) > 1 else self._ks[0]
        return [min(k, limit) for limit in limits]

    def observe(self, *measured: Any) -> None:
        pass


@pytest.mark.parametrize("pending", [1, 4, 512])
@pytest.mark.parametrize("method", ["vsd", "pard2-ti", "pard2-td"])
def test_a_draft_that_was_not_asked_for_a_while_guesses_as_well_as_ever(method, pending, monkeypatch):
    """Else K = 0 would be a trap: the draft has missed what was said meanwhile, and is
    never worth asking again."""
    for drafter in (pard2.engine.drafters.parallel, pard2.engine.drafters.autoregressive):
        monkeypatch.setattr(drafter, "MOST_PENDING", pending)
    target = tiny_target()
    draft = perfect_draft(target) if method == "vsd" else tiny_draft(target)
    text = greedy(target, PROMPTS[0], 40)
    for silent in (1, 9):
        engine = Engine(target, draft, method)
        engine._cycle._lengths = Told(*[0] * silent, 5)  # type: ignore[assignment]
        late = record_proposals(engine)
        (out,) = engine.generate([PROMPTS[0]], SamplingParams(max_tokens=40))
        assert out.token_ids == text and out.stats.proposed_per_cycle[:silent] == (0,) * silent
        # From the same place in the text, an engine whose draft has missed nothing.
        engine = Engine(target, draft, method, 5)
        fresh = record_proposals(engine)
        (again,) = engine.generate([PROMPTS[0] + text[:silent]], SamplingParams(max_tokens=40 - silent))
        assert late == fresh != []
        assert out.stats.accepted_per_cycle[silent:] == again.stats.accepted_per_cycle


def test_sequences_with_and_without_proposals_share_a_cycle():
    engine = new_engine("pard2-td", "auto")

    class Uneven(Told):
        def choose(self, acceptances: list[Acceptance], limits: list[int], backlog: list[int]) -> list[int]:
            return [min(number % 3 * 2, limit) for number, limit in enumerate(limits)]

    engine._cycle._lengths = Uneven()  # type: ignore[assignment]
    assert texts(engine) == plain()
