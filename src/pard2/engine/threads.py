"""How many of torch's threads decode: all on an idle machine, fewer while other programs use the cores.

torch divides each product among OpenMP threads, which spin while they wait for one another. On an
idle machine nothing is faster. Where a thread has lost its core to another program, the others spin
for as long as that lasts, some hundred times a token: two threads beside one busy program are slower
than one (benchmarks/busy.py). OpenMP reads how it waits once, before torch is loaded, so it is the
number of threads that adapts.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from pard2.kernels.packed import PackedLinear

_WINDOW = 0.1  # seconds of passes that are judged together
_MISSING = 0.25  # cores that the threads must have lost
_SOONEST, _LATEST = 1.0, 30.0  # seconds until all threads are tried again
_ROWS = (1, 2, 5, 8)


class Threads:
    """The number of threads of an engine's passes. How often they had a core tells whether others want it.

    most: threads on an idle machine.
    clock: seconds that went by.
    cpu: seconds that all threads of this process computed or spun.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter, cpu: Callable[[], float] = time.process_time) -> None:
        self.count = self._most = most
        self._clock, self._cpu = clock, cpu
        self._wall = self._used = 0.0  # of the window
        self._patience = 0.0  # seconds with fewer threads before all are tried again; 0 while none has lost its core
        self._rest = 0.0  # what is left of them

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Passes inside run with `count` threads, and decide how many the next ones get."""
        if self._most == 1:
            yield
            return
        torch.set_num_threads(self.count)
        began, used = self._clock(), self._cpu()
        try:
            yield
        finally:
            torch.set_num_threads(self._most)
            self._wall += self._clock() - began
            self._used += self._cpu() - used
            if self._wall >= _WINDOW:
                self._decide(self._wall, self._used / self._wall)
                self._wall = self._used = 0.0

    def _decide(self, seconds: float, cores: float) -> None:
        if self.count < self._most:
            self._rest -= seconds
            if self._rest <= 0:
                self.count = self._most  # for a window, which tells whether the others have gone
        elif self.count - cores > _MISSING:
            self._patience = self._rest = min(max(_SOONEST, 2 * self._patience), _LATEST)
            self.count = max(1, int(cores))
        else:
            self._patience = 0.0


class TeamThreads:
    """The threads of our own kernels, which sleep when they wait: always all of them, and torch's make
    room.
    """

    @staticmethod
    def decoding() -> AbstractContextManager[None]:
        from pard2.kernels.team import in_place_of_torch  # numba is an extra

        return in_place_of_torch()


def decoding_threads(target: nn.Module, draft: nn.Module | None = None) -> Threads | TeamThreads:
    """For the passes of a target and its draft.

    The number of torch's threads is fixed on a GPU, where the environment says how OpenMP shall run, and
    where another number would change the last bit of a sum.
    """
    if _in_panels(target) and (draft is None or _in_panels(draft)):
        return TeamThreads()
    most = torch.get_num_threads()
    said = any(name in os.environ for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_DYNAMIC"))
    return Threads(1 if said or not _same_bits(target, most) else most)


def _in_panels(model: nn.Module) -> bool:
    """Whether our own kernels multiply by all of a model's packed matrices."""
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    return bool(packed) and all(module.panels is not None for module in packed)


def _same_bits(model: nn.Module, most: int) -> bool:
    """Whether the model's products are packed and give the same bits with any number of threads.

    FBGEMM's do, float32 products do not.
    """
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    if most == 1 or not packed:
        return False
    widest = max(packed, key=lambda module: module.in_features)
    generator = torch.Generator().manual_seed(0)
    for rows in _ROWS:
        x = torch.randn(rows, widest.in_features, generator=generator)
        results = []
        for count in (most, max(1, most // 2), 1):
            torch.set_num_threads(count)
            results.append(widest(x))
        torch.set_num_threads(most)
        if not all(torch.equal(results[0], other) for other in results[1:]):
            return False
    return True
