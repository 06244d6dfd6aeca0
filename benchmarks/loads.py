"""A full batch of endless answers: what cycles are timed on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pard2 import Engine, SamplingParams

_MOST_STEPS = 10_000  # until all prompts are read


@contextmanager
def full_batch(engine: Engine, prompts: Sequence[list[int]], most_tokens: int) -> Iterator[None]:
    """Within, all prompts have been read, and each `engine.step` is a cycle in which
    every sequence says something.

    engine: idle, with room for all prompts at once.
    prompts: token ids.
    most_tokens: new tokens of each sequence, those that it says while others are still read included.

    Raises `SystemExit` where a sequence ended too early: the figures would be of a smaller batch.
    """
    requests = [engine.submit(prompt, SamplingParams(max_tokens=most_tokens, ignore_eos=True)) for prompt in prompts]
    try:
        for _ in range(_MOST_STEPS):
            before = engine.totals
            engine.step()
            if (engine.totals - before).tokens >= len(prompts):
                break
        before = engine.totals
        yield
        done = engine.totals - before
        if any(request.done for request in requests) or done.tokens < len(prompts) * done.cycles:
            raise SystemExit("a sequence ended while the batch was timed; the figures would be of a smaller one")
    finally:
        for request in requests:
            request.cancel()
        engine.step()
