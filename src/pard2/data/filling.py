"""Fills a feature cache ahead of training: the first few conversations tell how long the others will take."""

import time
from collections.abc import Callable, Iterator, Sequence

from pard2.data.corpus import Example
from pard2.data.state_cache import StateCache

_PROBE_CONVERSATIONS, _PROBE_SECONDS = 16, 5.0


def probe(cache: StateCache, examples: Sequence[Example], numbers: Sequence[int]) -> tuple[int, float]:
    """Generate the first of these examples: how many they were, and seconds a token.

    The very first is not timed where there are more: it pays for what happens once.
    """
    done, tokens = 0, 0
    began = time.perf_counter()
    for count in _generate(cache, examples, numbers[:_PROBE_CONVERSATIONS]):
        done, tokens = done + 1, tokens + count
        if done == 1 and len(numbers) > 1:
            began, tokens = time.perf_counter(), 0
        elif time.perf_counter() - began > _PROBE_SECONDS:
            break
    return done, (time.perf_counter() - began) / max(1, tokens)


def fill(cache: StateCache, examples: Sequence[Example], numbers: Sequence[int], progress: Callable[[int, int], None]) -> None:
    """Generate these examples and write what is pending.

    progress: told of each, one conversation and its tokens.
    """
    for tokens in _generate(cache, examples, numbers):
        progress(1, tokens)
    cache.flush()


def _generate(cache: StateCache, examples: Sequence[Example], numbers: Sequence[int]) -> Iterator[int]:
    for number in numbers:
        example = examples[number]
        if cache.missing([example]):  # unless an equal one came before
            cache.generate(example)
        yield len(example.token_ids)
