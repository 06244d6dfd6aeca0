"""What the benchmark scripts share: work that takes turns, and the prompts that it is done on."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from pard2.bench.suites import read_suites
from pard2.engine.prompts import encode_prompt
from pard2.models.target import Target

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def in_turn(work: Mapping[Key, Callable[[], Value]], rounds: int) -> dict[Key, list[Value]]:
    """What each piece of work returned, round by round.

    Every other round goes the other way, so that nobody always comes first.
    """
    done: dict[Key, list[Value]] = {key: [] for key in work}
    for number in range(rounds):
        for key in list(work)[:: -1 if number % 2 else 1]:
            done[key].append(work[key]())
    return done


def seconds(action: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Of one call on average, the device's work included."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        action()
    _wait(device)
    return (time.perf_counter() - started) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes a second that the device reads from memory when it does hardly anything else.

    The buffer must exceed its caches.
    """
    buffer = torch.ones(megabytes * 2**18, device=device)
    buffer.sum()
    return buffer.nbytes / min(seconds(buffer.sum, device) for _ in range(5))


def suite_prompts(paths: Sequence[Path], target: Target, most: int) -> dict[str, list[list[int]]]:
    """Token ids of the first `most` prompts of each suite, by its name."""
    return {suite.name: [encode_prompt(target, prompt) for prompt in suite.prompts] for suite in read_suites(paths, most)}
