"""Threads that run one compiled function together, each with its part, and sleep when they wait for long.

A pass on a CPU has some hundred points where its threads must wait for one another, microseconds each on
an idle machine. OpenMP's threads spin there without end, so that a thread without a core costs the others
theirs; those here spin for a moment, then give their core away, then sleep.
"""

import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from pard2.kernels.vectors import intrinsic

Array = np.ndarray

_SPINS = 2000  # looks at the number before a core is given away: some ten microseconds
_YIELDS = 50  # times that a core is given away before sleeping
_NAP = 50  # microseconds
_ABANDONED = 1 << 40  # arrivals at a meeting that will not take place

_yield: Any = types.ExternalFunction("sched_yield", types.int32())
_sleep: Any = types.ExternalFunction("usleep", types.int32(types.uint32))


@intrinsic
def _arrive(typing: Any, address: Any) -> Any:
    """Add one to the number at an address, as if at once for all threads. Returns what it was."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(types.int64), emit


@intrinsic
def _look(typing: Any, address: Any) -> Any:
    """The number at an address, and all that was written before it was."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        if platform.machine() in ("x86_64", "AMD64"):  # lets the other thread of a core work
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"), [])
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64), emit


@njit(cache=True, nogil=True)
def meet(meeting: Array, parts: int) -> None:
    """Wait until all parts are here, or one has failed.

    meeting: [1] int64, how often any part arrived since the start.
    """
    if parts == 1:
        return
    address = meeting.ctypes.data
    before = _arrive(address)
    if before >= _ABANDONED:
        return
    awaited, tries = (before // parts + 1) * parts, 0
    while _look(address) < awaited:
        tries += 1
        if tries > _SPINS + _YIELDS:
            _sleep(_NAP)
        elif tries > _SPINS:
            _yield()


class Team:
    """As many threads as are asked for; the caller is one of them."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._queues: list[SimpleQueue[Callable[[], None]]] = []

    def run(self, parts: int, function: Callable[..., None], *given: Any) -> None:
        """`function(*given, meeting, part, parts)` in `parts` threads at once, for part 0 to parts - 1.
        It meets at `meeting`.

        The function must release the lock of the interpreter, or its parts run one after another and
        never meet.
        """
        meeting = np.zeros(1, np.int64)
        if parts == 1:
            return function(*given, meeting, 0, 1)
        while len(self._queues) < parts - 1:
            queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
            threading.Thread(target=_serve, args=(queue,), daemon=True, name=f"pard2-{len(self._queues) + 1}").start()
            self._queues.append(queue)
        done: SimpleQueue[BaseException | None] = SimpleQueue()

        def work(part: int) -> None:
            try:
                function(*given, meeting, part, parts)
            except BaseException as error:
                meeting[0] = _ABANDONED
                done.put(error)
            else:
                done.put(None)

        try:
            for part in range(1, parts):
                self._queues[part - 1].put(partial(work, part))
            function(*given, meeting, 0, parts)
            errors = [done.get() for _ in range(1, parts)]
        except BaseException:  # Ctrl-C: nobody may wait for who does not come, nor write while the caller goes on
            meeting[0] = _ABANDONED
            for queue in self._queues:
                last = threading.Event()
                queue.put(last.set)
                last.wait()
            raise
        for error in errors:
            if error is not None:
                raise error


def _serve(queue: "SimpleQueue[Callable[[], None]]") -> None:
    while True:
        queue.get()()


_team, _lock = Team(), threading.Lock()
_size: int | None = None  # where it is not torch's


def team_size() -> int:
    """Threads that a call should take: torch's number, or what it was before `in_place_of_torch`."""
    return _size or torch.get_num_threads()


@contextmanager
def in_place_of_torch() -> Iterator[None]:
    """Inside, torch takes one thread: those that wait for its next operation spin, on the cores that ours
    need.
    """
    global _size
    before, torch_threads = _size, torch.get_num_threads()
    _size = before or torch_threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        _size = before


def run_together(parts: int, function: Callable[..., None], *given: Any) -> None:
    """`Team.run` of this process's one team; a second caller waits. A forked child has a team of its own."""
    global _team, _lock
    if _team.process != os.getpid():
        _team, _lock = Team(), threading.Lock()
    with _lock:
        _team.run(parts, function, *given)
