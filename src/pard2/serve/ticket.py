"""A request of the API while it is answered: what the engine was asked, and the steps on their way back.

Made and read on the event loop; the thread that decodes only ends it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pard2.engine.request import Request
from pard2.engine.sequence import Sequence
from pard2.engine.statistics import Step
from pard2.serve.engines import Way
from pard2.serve.errors import STOPPED, ApiError


@dataclass(frozen=True)
class Made:
    """A step of one completion. number: of the completion, over all prompts of the request."""

    number: int
    step: Step


class Ticket:
    """requests: one for each prompt, as `new_request` makes them; each of n completions.

    way: how they are drafted.
    """

    def __init__(self, requests: list[Request], way: Way) -> None:
        self.requests, self.way = requests, way
        self.sequences: list[Sequence] = [sequence for request in requests for sequence in request.sequences]
        self.arrived = time.perf_counter()
        self.cancelled = False
        self._made: asyncio.Queue[Made | ApiError] = asyncio.Queue()

    def put(self, made: Made | ApiError) -> None:
        """On the event loop: what there is, or why there will be no more."""
        self._made.put_nowait(made)

    async def steps(self) -> AsyncIterator[Made]:
        """Every step of every completion, as they are made.

        Raises `ApiError` where one fails, or is ended by the server.
        """
        open_ones = len(self.sequences)
        while open_ones:
            made = await self._made.get()
            if isinstance(made, ApiError):
                raise made
            reason = made.step.finish_reason
            if reason == "error":
                raise ApiError(500, self.sequences[made.number].error or "decoding failed", code="decoding_failed")
            if reason == "cancelled":
                raise ApiError(503, "the server was stopped before the answer was complete", code=STOPPED)
            open_ones -= reason is not None
            yield made

    def end(self, reason: str | None = None) -> None:
        """End what has not ended, from any thread. reason: of a failure; None where nobody failed."""
        for sequence in self.sequences:
            sequence.end("cancelled" if reason is None else "error", reason)

    @property
    def done(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    @property
    def running(self) -> int:
        """Completions that have a place."""
        return sum(sequence.memory is not None for sequence in self.sequences)

    @property
    def waiting(self) -> int:
        """Completions that wait for one."""
        return sum(sequence.memory is None and sequence.finish_reason is None for sequence in self.sequences)
