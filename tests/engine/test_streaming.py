"""Texts piece by piece: several streams of one engine, by iterators and in asyncio, and what
becomes of one that is dropped."""

import asyncio
import gc
import threading
from typing import Any

import pytest

from chat_tokenizer import MASK_ID, VOCABULARY, byte_tokenizer
from engines import METHODS, is_empty, new_engine, run_dry, shared_target
from pard2 import Engine, SamplingParams
from pard2.engine.sequence import Sequence
from pard2.engine.statistics import Stats, Step
from pard2.engine.verification import Verification
from pard2.errors import Pard2Error
from tiny import greedy, random_prompts, tiny_draft, tiny_target

PROMPTS = random_prompts(5, seed=6)


def expected(number: int, count: int = 16) -> list[int]:
    return greedy(shared_target(), PROMPTS[number], count)


def tokens(steps: list[Step]) -> list[int]:
    return [token for step in steps for token in step.token_ids]


async def consume(engine: Engine, number: int, count: int = 16) -> list[int]:
    return tokens([step async for step in engine.astream(PROMPTS[number], SamplingParams(max_tokens=count))])


def settle(engine: Engine) -> None:
    """Wait for what closed streams have left to the engine's thread."""
    engine._get_worker().submit(lambda: None).result(10)


# --- iterators ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_streams_in_turn_share_batches_and_say_what_each_says_alone(method):
    engine = new_engine(method, "auto" if method == "ar" else 3)
    streams = [engine.stream(prompt, SamplingParams(max_tokens=16)) for prompt in PROMPTS]
    steps: list[list[Step]] = [[] for _ in streams]
    going = list(range(len(streams)))
    while going:
        for number in list(going):
            step = next(streams[number], None)
            if step is None:
                going.remove(number)
            else:
                steps[number].append(step)
    assert [tokens(mine) for mine in steps] == [expected(number) for number in range(len(PROMPTS))]
    assert all([step.finish_reason for step in mine] == [None] * (len(mine) - 1) + ["length"] for mine in steps)
    cycles = [Stats.of(mine).cycles for mine in steps]
    assert max(cycles) <= engine.totals.cycles < sum(cycles) / 2
    assert is_empty(engine)


def test_a_closed_stream_frees_its_memory_at_once_and_leaves_others_alone():
    engine = new_engine("pard2-td", 3)
    first, second = (engine.stream(PROMPTS[n], SamplingParams(max_tokens=16)) for n in (0, 1))
    begun = [next(second)]
    next(first)
    held = engine.cache_tokens - engine.free_cache_tokens
    first.close()
    assert engine.cache_tokens - engine.free_cache_tokens == len(PROMPTS[1]) + 16 < held
    assert tokens([*begun, *second]) == expected(1)
    assert is_empty(engine)


def test_a_forgotten_stream_is_closed():
    engine = new_engine("ar", "auto")
    for _ in engine.stream(PROMPTS[0], SamplingParams(max_tokens=16)):
        break
    gc.collect()
    assert is_empty(engine)


def test_a_stream_whose_memory_is_freed_in_the_middle_of_a_pass_does_not_stop_the_engine():
    """The collector runs wherever it likes, also where the engine holds its own lock."""
    engine = new_engine("pard2-td", 3)
    streams = [engine.stream(PROMPTS[0], SamplingParams(max_tokens=16))]
    next(streams[0])
    request = engine.submit(PROMPTS[1], SamplingParams(max_tokens=16))
    propose = engine._cycle._drafter.propose

    def collecting(requests: Any, selector: Any) -> Any:
        streams.clear()  # in a cycle, whose sequences the stream's is one of
        return propose(requests, selector)

    engine._cycle._drafter.propose = collecting  # type: ignore[method-assign]
    thread = threading.Thread(target=run_dry, args=(engine,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for itself"
    assert request.completions()[0].token_ids == expected(1) and is_empty(engine)


def test_a_stream_that_nobody_began_asks_for_nothing():
    engine = new_engine("ar", "auto")
    engine.stream(PROMPTS[0])
    engine.completions(PROMPTS)
    engine.astream(PROMPTS[0])
    assert is_empty(engine)


def test_closing_completions_cancels_what_has_not_been_made_yet():
    engine = new_engine("vsd", 3, max_batch=2)
    outputs = engine.completions(PROMPTS, SamplingParams(max_tokens=16))
    assert next(outputs).token_ids == expected(0)
    outputs.close()
    assert is_empty(engine)
    assert engine.generate([PROMPTS[3]], SamplingParams(max_tokens=16))[0].token_ids == expected(3)


def test_a_stream_of_n_completions_says_whose_each_step_is():
    params = SamplingParams(max_tokens=9, temperature=1.0, seed=3, n=3)
    engine = new_engine("pard2-ti", 3)
    steps = list(engine.stream(PROMPTS[0], params))
    for out in engine.generate([PROMPTS[0]], params):
        mine = [step for step in steps if step.index == out.index]
        assert tokens(mine) == out.token_ids and mine[-1].finish_reason == "length"


def test_callbacks_see_every_step_of_their_own_request_in_order():
    engine = new_engine("pard2-ti", 3)
    seen: list[list[Step]] = [[] for _ in PROMPTS]
    for prompt, mine in zip(PROMPTS, seen, strict=True):
        engine.submit(prompt, SamplingParams(max_tokens=16), on_step=mine.append)
    run_dry(engine)
    assert [tokens(mine) for mine in seen] == [expected(number) for number in range(len(PROMPTS))]
    assert [mine[-1].finish_reason for mine in seen] == ["length"] * len(PROMPTS)


def test_a_callback_may_submit_and_cancel():
    """It is called where the engine holds its own lock."""
    engine = new_engine("pard2-ti", 3)
    later = []

    def chain(step: Step) -> None:
        if not later:
            later.append(engine.submit(PROMPTS[1], SamplingParams(max_tokens=16)))
            second.cancel()

    engine.submit(PROMPTS[0], SamplingParams(max_tokens=16), on_step=chain)
    second = engine.submit(PROMPTS[2], SamplingParams(max_tokens=16))
    thread = threading.Thread(target=run_dry, args=(engine,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for itself"
    assert later[0].completions()[0].token_ids == expected(1)
    assert second.completions()[0].finish_reason == "cancelled" and is_empty(engine)


# --- text ---------------------------------------------------------------------------------------------


def babbling() -> Engine:
    """Bytes of two-, three- and four-byte characters, as often whole as torn, and accepted in blocks."""
    target = tiny_target(vocab=VOCABULARY)
    target.tokenizer = byte_tokenizer(template=None)
    return Engine(target, tiny_draft(target, mask_token=MASK_ID), "pard2-ti", 5)


@pytest.mark.parametrize("text", ["é", "€", "😀"])
def test_characters_are_never_torn_and_pieces_add_up_to_the_text(text):
    engine = babbling()
    ids = engine.target.tokenizer(text * 2)["input_ids"]
    for seed in range(4):
        params = SamplingParams(max_tokens=40, temperature=0.5, seed=seed, logit_bias=dict.fromkeys(ids, 40.0), repetition_penalty=1.02)
        steps = list(engine.stream(ids, params))
        (out,) = engine.generate([ids], params)
        assert "".join(step.text or "" for step in steps) == out.text == engine.target.tokenizer.decode(out.token_ids)
        assert tokens(steps) == out.token_ids


def test_a_character_waits_for_its_last_byte():
    """Token by token, é is nothing and then é, never a replacement character that is taken back."""
    engine = Engine(babbling().target)
    first, second = engine.target.tokenizer("é")["input_ids"]
    for seed in range(4):
        said, shown = b"", ""
        for step in engine.stream([first, second], SamplingParams(max_tokens=30, temperature=1.0, seed=seed, logit_bias={first: 60.0, second: 60.0})):
            said += bytes(0xC3 if token == first else 0xA9 for token in step.token_ids)
            shown += step.text
            complete = said[:-1] if said.endswith(b"\xc3") and step.finish_reason is None else said
            text = complete.decode(errors="replace")
            assert text.startswith(shown) and text[len(shown) :] in ("", "\ufffd")
        assert "é" in shown and shown == said.decode(errors="replace")


@pytest.mark.parametrize("stop", [(), ("zz",), ("#", "$%")])
def test_pieces_of_a_stream_add_up_to_the_completions_text(stop):
    target = tiny_target(seed=2)
    target.tokenizer = byte_tokenizer(template=None)
    engine = Engine(target, tiny_draft(target), "pard2-ti", 5)
    for prompt in PROMPTS:
        params = SamplingParams(max_tokens=20, temperature=1.0, seed=1, stop=stop)
        (out,) = engine.generate([prompt], params)
        assert "".join(step.text for step in engine.stream(prompt, params)) == out.text


# --- asyncio ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ar", "vsd", "pard2-td"])
def test_async_streams_share_batches(method):
    engine = new_engine(method, "auto" if method == "ar" else 3)

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(consume(engine, number) for number in range(len(PROMPTS))))

    assert asyncio.run(all_of_them()) == [expected(number) for number in range(len(PROMPTS))]
    alone = new_engine(method, "auto" if method == "ar" else 3)
    cycles = [out.stats.cycles for prompt in PROMPTS for out in alone.generate([prompt], SamplingParams(max_tokens=16))]
    assert engine.totals.cycles < sum(cycles) * 2 / 3
    settle(engine)
    assert is_empty(engine)


def test_a_cancelled_task_frees_its_memory_and_changes_nobodys_text():
    engine = new_engine("pard2-td", 3)
    begun = asyncio.Event()

    async def watched() -> None:
        async for _ in engine.astream(PROMPTS[4], SamplingParams(max_tokens=200)):
            begun.set()

    async def main() -> list[list[int]]:
        victim = asyncio.create_task(watched())
        others = [asyncio.create_task(consume(engine, number, 40)) for number in (0, 1)]
        await begun.wait()
        victim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await victim
        return await asyncio.gather(*others)

    assert asyncio.run(main()) == [expected(0, 40), expected(1, 40)]
    settle(engine)
    assert is_empty(engine)
    assert engine.totals.cycles < 100


def test_tasks_cancelled_at_any_moment_leave_nothing_behind():
    """In the queue, while the prompt is read, in a cycle, between two."""
    engine = new_engine("pard2-td", 3, max_batch=2)

    async def main() -> list[int]:
        witness = asyncio.create_task(consume(engine, 2, 40))
        for turns in range(12):
            task = asyncio.create_task(consume(engine, turns % 2, 60))
            for _ in range(turns):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await witness

    assert asyncio.run(main()) == expected(2, 40)
    settle(engine)
    assert is_empty(engine)


def test_an_async_stream_left_by_break_is_cancelled():
    engine = new_engine("ar", "auto")

    async def main() -> None:
        stream = engine.astream(PROMPTS[0], SamplingParams(max_tokens=100))
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    settle(engine)
    assert is_empty(engine) and engine.totals.cycles < 50


def test_an_async_stream_refuses_a_bad_prompt_before_it_begins():
    with pytest.raises(Pard2Error, match="empty"):
        new_engine("ar", "auto").astream([])


# --- threads ------------------------------------------------------------------------------------------


def test_saying_and_ending_exclude_each_other():
    """A cancel between the check and the end of `emit` was overwritten, and the sequence went on for ever."""
    sequence = Sequence(prompt=[1], params=SamplingParams(max_tokens=9), seed=0, index=0, max_new_tokens=9, stop_token_ids=frozenset(), text=None)

    class Cancelling(list):  # type: ignore[type-arg]
        def __getitem__(self, at: Any) -> Any:
            thread.start()
            thread.join(0.2)
            Cancelling.__getitem__ = list.__getitem__  # type: ignore[method-assign]
            return list.__getitem__(self, at)

    thread = threading.Thread(target=sequence.end, args=("cancelled",), daemon=True)
    sequence.emit(Verification(token_ids=Cancelling([3, 4]), path=[0], proposed=1, sound=True), seconds=0.0)
    thread.join(5)
    assert sequence.finish_reason == "cancelled" and sequence.tokens == [3, 4]
    sequence.emit(Verification(token_ids=[5], path=[], proposed=0, sound=True), seconds=0.0)
    assert sequence.tokens == [3, 4] and [step.finish_reason for step in sequence.steps] == [None, "cancelled"]


def test_threads_share_one_engine():
    engine = new_engine("pard2-td", 3)
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = tokens(list(engine.stream(PROMPTS[number], SamplingParams(max_tokens=16))))

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {number: expected(number) for number in range(len(PROMPTS))}
    assert is_empty(engine)


def test_a_request_that_another_thread_ends_right_after_its_report_is_told_of_its_end() -> None:
    engine, seen = new_engine("ar"), []
    request = engine.submit(PROMPTS[0], SamplingParams(max_tokens=16, n=2), on_step=seen.append)
    engine.step()
    report = request.report

    def report_and_end() -> None:
        report()
        request.cancel()

    request.report = report_and_end  # type: ignore[method-assign]
    engine.step()
    request.report = report  # type: ignore[method-assign]
    run_dry(engine)
    assert [step.finish_reason for step in seen[-2:]] == ["cancelled"] * 2 and is_empty(engine)
