"""Hundreds of mixed requests through one engine, after which nothing of them is left."""

import gc
import random
from typing import Any

import pytest
import torch

from chat_tokenizer import byte_tokenizer
from engines import METHODS, is_empty, new_engine
from pard2 import Engine, SamplingParams
from pard2.engine.request import Request
from pard2.engine.statistics import Step
from tiny import set_eos, tiny_target

REQUESTS = 100  # for each of the five methods


def random_params(dice: random.Random) -> SamplingParams:
    sampled: dict[str, Any] = {}
    if dice.random() < 0.6:
        sampled = {
            "temperature": dice.choice([0.3, 1.0, 2.0]),
            "top_k": dice.choice([0, 3, 20]),
            "top_p": dice.choice([0.5, 1.0]),
            "min_p": dice.choice([0.0, 0.1]),
            "seed": dice.choice([None, 3]),
            "n": dice.choice([1, 1, 1, 3]),
        }
    return SamplingParams(
        max_tokens=dice.choice([1, 2, 5, 9]),
        repetition_penalty=dice.choice([1.0, 1.0, 1.4]),
        presence_penalty=dice.choice([0.0, 0.5]),
        logit_bias=dice.choice([None, {4: 2.0}]),
        stop=dice.choice([(), ("$", "B", "0", "Q"), ("ab", "&'")]),
        logprobs=dice.choice([None, None, 0, 2]),
        **sampled,
    )


def submit(engine: Engine, dice: random.Random) -> Request:
    prompt = [dice.randrange(60) for _ in range(dice.choice([1, 3, 12, 30]))]
    fate = dice.random()

    def fail(step: Step) -> None:
        if dice.random() < 0.3:
            raise RuntimeError("a callback's trouble")

    return engine.submit(prompt, random_params(dice), on_step=fail if fate < 0.1 else None)


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def soak(engine: Engine, dice: random.Random, count: int) -> dict[str, int]:
    """Requests that arrive in bursts while others run, some of them cancelled wherever they
    are by then; how they ended."""
    requests: list[Request] = []
    open_streams: list[Any] = []
    while len(requests) < count or not engine.idle:
        for _ in range(min(dice.choice([0, 0, 1, 6]), count - len(requests))):
            requests.append(submit(engine, dice))
            if dice.random() < 0.15:
                dice.choice(requests[-10:]).cancel()
        if dice.random() < 0.1 and len(requests) < count:
            open_streams.append(engine.stream([dice.randrange(60)], SamplingParams(max_tokens=6)))
            next(open_streams[-1])
        if open_streams and dice.random() < 0.3:
            open_streams.pop(0).close()
        if len(requests) == count:
            open_streams.clear()
        engine.step()
        assert len(engine._scheduler.sequences) <= 6
        assert engine.free_cache_tokens <= engine.cache_tokens
    ends: dict[str, int] = {}
    for request in requests:
        for out in request.completions():
            ends[out.finish_reason] = ends.get(out.finish_reason, 0) + 1
            assert len(out.token_ids) <= 9 and (out.logprobs is None or len(out.logprobs) == len(out.token_ids))
    return ends


@pytest.mark.parametrize("method", METHODS)
def test_mixed_requests_leave_every_slot_every_row_and_all_memory_free(method):
    target = tiny_target(seed=2, vocab=61)
    target.tokenizer = byte_tokenizer(template=None)
    set_eos(target, 7, 20, 41)
    dice = random.Random(method)
    sampling = {} if method == "ar" else {"draft_sampling": "sampled"}
    # A cache too small for the whole batch at times, so that requests wait for memory, too.
    engine = new_engine(method, "auto", target, max_batch=6, cache_tokens=120, **sampling)
    soak(engine, dice, 10)
    before = live_tensors()
    ends = soak(engine, dice, REQUESTS)
    assert is_empty(engine)
    assert {"length", "stop", "cancelled", "error"} <= set(ends), ends
    assert live_tensors() - before <= 5
