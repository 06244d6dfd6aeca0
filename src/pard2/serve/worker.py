"""The thread that decodes: tickets in, steps out to the event loop. Nobody else touches an engine.

It knows neither HTTP nor the form of an answer.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from pard2.engine.statistics import Step
from pard2.errors import Pard2Error, first_line
from pard2.serve.engines import Engines
from pard2.serve.errors import STOPPED, ApiError
from pard2.serve.metrics import Metrics
from pard2.serve.ticket import Made, Ticket

_MOST_FAILURES = 3  # passes in a row that fail before everybody is told
log = logging.getLogger("pard2.serve")


class Worker:
    """metrics: gets each step as it is made."""

    def __init__(self, engines: Engines, metrics: Metrics) -> None:
        self._engines, self._metrics = engines, metrics
        self._inbox: SimpleQueue[Ticket | None] = SimpleQueue()  # None: look after what was ended
        self._made: list[tuple[Ticket, Made | ApiError]] = []
        self._tickets: set[Ticket] = set()  # that have been enqueued
        self._stopping = threading.Event()
        self._failures = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="pard2-decoding", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping.is_set()

    def submit(self, ticket: Ticket) -> None:
        """From the event loop: decode it. Its steps come to `ticket.steps`."""
        self._inbox.put(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """From the event loop: nobody waits for it any more. Its places are free before the next cycle."""
        ticket.cancelled = True
        ticket.end()
        self._inbox.put(None)

    def stop(self, seconds: float | None = None) -> None:
        """End everything, and wait for the thread, which a pass may hold up, for so long at most."""
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join(seconds)

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._take(wait=self._engines.idle)
            for engine in self._engines.all:
                if not engine.idle:
                    self._step(engine.step)
            self._hand_over()
        for ticket in self._tickets:
            ticket.end()
        while not self._inbox.empty():
            ticket = self._inbox.get()
            if ticket is not None:
                self._fail(ticket, ApiError(503, "the server is stopping", code=STOPPED))
        for engine in self._engines.all:
            engine.tidy()  # reports the last steps
        self._hand_over()

    def _take(self, wait: bool) -> None:
        """Enqueue what has come in; without anything to do, wait for it."""
        ended = False
        try:
            while True:
                ticket = self._inbox.get(block=wait)
                wait = False
                if ticket is None:
                    ended = True
                elif not ticket.cancelled:
                    self._enqueue(ticket)
        except Empty:
            pass
        if ended:  # of those that wait, too, which the next step would not look at
            for engine in self._engines.all:
                engine.tidy()

    def _enqueue(self, ticket: Ticket) -> None:
        try:
            engine = self._engines.get(ticket.way)
        except Pard2Error as error:
            busy = "busy" in str(error)
            self._fail(ticket, ApiError(429 if busy else 500, str(error), param="pard2", retry_after=1 if busy else None))
            return
        except Exception as error:  # what an architecture or a device refuses
            self._fail(ticket, ApiError(500, f"no engine of this method can be made, {type(error).__name__}: {first_line(error)}"))
            return
        number = 0
        for request in ticket.requests:
            request.on_step = self._collector(ticket, number)
            number += len(request.sequences)
        self._tickets.add(ticket)
        engine.enqueue(ticket.requests)

    def _collector(self, ticket: Ticket, first: int) -> Callable[[Step], None]:
        """Takes the steps of a prompt whose completions are numbered from `first` on."""

        def collect(step: Step) -> None:
            made = Made(first + step.index, step)
            self._made.append((ticket, made))
            self._metrics.observe(ticket, made)
            if step.finish_reason is not None and ticket.done:
                self._tickets.discard(ticket)

        return collect

    def _step(self, step: Callable[[], None]) -> None:
        """A cycle. A pass that fails has ended those who took part; the others go on."""
        try:
            step()
            self._failures = 0
        except Exception as error:
            self._failures += 1
            log.error("a pass failed, %s: %s", type(error).__name__, first_line(error), exc_info=not isinstance(error, Pard2Error))
            if self._failures >= _MOST_FAILURES:  # and so would the next one: nobody shall wait for ever
                for ticket in list(self._tickets):
                    ticket.end(f"decoding stopped, {type(error).__name__}: {first_line(error)}")
                for engine in self._engines.all:
                    engine.tidy()
                self._failures = 0

    def _fail(self, ticket: Ticket, error: ApiError) -> None:
        ticket.end(error.message)
        self._made.append((ticket, error))

    def _hand_over(self) -> None:
        """Everything made since the last time, in one call: each call wakes the event loop."""
        if not self._made:
            return
        made, self._made = self._made, []
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(_deliver, made)


def _deliver(made: list[tuple[Ticket, Made | ApiError]]) -> None:
    for ticket, one in made:
        ticket.put(one)
