"""Threads that run one function together."""

import multiprocessing
import threading
import time

import numpy as np
import pytest
from numba import njit

from pard2.kernels.team import Team, meet, run_together


@njit(nogil=True)
def rounds(seen, meeting, part, parts):
    """Each part adds to its own number, and looks at the others' after each meeting."""
    for number in range(200):
        seen[part, 0] += 1
        meet(meeting, parts)
        for other in range(parts):
            if seen[other, 0] != number + 1:
                seen[part, 1] += 1
        meet(meeting, parts)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_nobody_goes_on_before_all_have_come(parts):
    seen = np.zeros((parts, 2), np.int64)
    Team().run(parts, rounds, seen)
    assert (seen == [200, 0]).all()


def test_threads_are_kept_for_the_next_call():
    team = Team()
    for parts in (3, 2, 3):
        team.run(parts, rounds, np.zeros((parts, 2), np.int64))
    before = threading.active_count()
    team.run(3, rounds, np.zeros((3, 2), np.int64))
    assert threading.active_count() == before


def failing(where, waiting, meeting, part, parts):
    if part == where:
        raise KeyboardInterrupt
    meet(meeting, parts)  # the one who failed does not come
    waiting.append(part)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_nobody_waits_for_one_who_failed(where):
    team, waiting = Team(), []
    with pytest.raises(KeyboardInterrupt):
        team.run(3, failing, where, waiting)
    assert sorted(waiting) == [part for part in range(3) if part != where], "nobody still runs when the caller goes on"
    seen = np.zeros((3, 2), np.int64)
    team.run(3, rounds, seen)
    assert (seen == [200, 0]).all()


@njit(nogil=True)
def late(out, meeting, part, parts):
    if part == 0:
        total = 0.0
        for i in range(out[0]):
            total += np.sin(i)
        out[1] = int(total > 2)
    meet(meeting, parts)


def test_who_waits_for_long_sleeps():
    """Else a machine with other programs loses a core to each waiting thread."""
    out = np.array([1000, 0])
    Team().run(2, late, out)
    out[0] = 30_000_000
    began, used = time.perf_counter(), time.process_time()
    Team().run(2, late, out)
    seconds = time.perf_counter() - began
    assert seconds > 0.05 and time.process_time() - used < 1.5 * seconds


def in_child(queue):
    seen = np.zeros((2, 2), np.int64)
    run_together(2, rounds, seen)
    queue.put(seen.tolist())


def test_a_forked_child_has_threads_of_its_own():
    """Threads do not survive a fork: a child that waited for its parent's would wait for ever."""
    run_together(2, rounds, np.zeros((2, 2), np.int64))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=60) == [[200, 0]] * 2
    finally:
        child.kill()
