"""Requests from their arrival to their answer: who may wait, who prepares, who decodes, who is told.

Everything here runs on the event loop, and nothing here takes long.
"""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pard2.errors import Pard2Error
from pard2.serve.answer import Answer, ChatAnswer, TextAnswer
from pard2.serve.connection import ClientGone, EventStream, read_body, too_late, while_connected
from pard2.serve.engines import Engines
from pard2.serve.errors import STOPPED, ApiError
from pard2.serve.gate import CLIENT_GONE
from pard2.serve.metrics import Metrics
from pard2.serve.prepare import Prepared, Preparer
from pard2.serve.settings import ServeOptions
from pard2.serve.ticket import Ticket
from pard2.serve.worker import Worker

_LONGEST_RETRY = 60  # seconds
_MEMORY = 0.9  # of the mean time of an answer, for each further one


class Service:
    """One model behind the API.

    name: what clients call it.
    arguments: of its chat template, where a request names none.

    Raises `Pard2Error` for a target without a tokenizer.
    """

    def __init__(self, engines: Engines, name: str, options: ServeOptions, arguments: dict[str, Any] | None = None) -> None:
        if engines.target.tokenizer is None:
            raise Pard2Error(
                f"{engines.target.name!r} has no tokenizer, without which a server cannot read a text; add the tokenizer's files to `target`"
            )
        self.engines, self.name, self.options = engines, name, options
        self.created = int(time.time())
        self.metrics = Metrics(name)
        self.preparer = Preparer(engines, name, arguments, options.max_tokens)
        self._worker = Worker(engines, self.metrics)
        self._tickets: set[Ticket] = set()
        self._places = engines.first.options.max_batch
        self._held = 0  # completions that wait or are decoded, and requests that are being read
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.cut_off = 0  # requests that the server's end has ended
        self._mean_seconds = 1.0  # that an answer takes
        # One thread: a tokenizer's own threads suffice, and several in one tokenizer are nobody's promise.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pard2-prompts")
        self.metrics.watch(engines, lambda: list(self._tickets))

    def start(self) -> None:
        """Begin to decode, for the event loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._worker.start(self._loop)

    @property
    def ready(self) -> bool:
        return self._worker.alive and not self._draining

    def drain(self) -> None:
        """Take no more requests; those that are here have `drain_seconds`. For a signal's handler, too."""
        if not self._draining and self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.call_later, self.options.drain_seconds, self._cut_off)
        self._draining = True

    def _cut_off(self) -> None:
        """Tell everybody at once, however long the pass that runs may take."""
        for ticket in self._tickets:
            ticket.put(ApiError(503, "the server was stopped before the answer was complete", code=STOPPED))

    def stop(self, seconds: float | None = None) -> None:
        """End all requests and the threads; a pass that runs may hold this up for so many seconds."""
        self._draining = True
        self._worker.stop(seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def aside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """A call in the thread for prompts."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, self.preparer.chat, ChatAnswer)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, self.preparer.completion, TextAnswer)

    async def read(self, request: Request, work: Callable[[bytes], Any]) -> Any:
        """What `work`, done aside, makes of a request's body."""
        if not self.ready:
            raise ApiError(503, "the server is stopping", code=STOPPED, retry_after=int(self.options.drain_seconds) + 1)
        self._hold(1)
        try:
            return await self.aside(work, await read_body(request, self.options.max_body))
        finally:
            self._held -= 1

    # --- one request ------------------------------------------------------------------------------

    async def _answer(self, request: Request, prepare: Callable[[bytes], Prepared], kind: type[Answer]) -> Response:
        facts = request.scope["pard2"]
        prepared = await self.read(request, prepare)
        ticket = prepared.ticket
        self._hold(len(ticket.sequences))
        answer = kind(prepared, self.preparer.tokenizer, self.name, self.aside)
        self._tickets.add(ticket)
        self._worker.submit(ticket)

        def ended(failure: BaseException | None) -> None:
            """Whatever became of it: nobody waits for it any more."""
            self._worker.cancel(ticket)
            self._tickets.discard(ticket)
            self._held -= len(ticket.sequences)
            facts.update(answer.facts())
            if self.options.log_prompts:
                facts.update(self._words(answer))
            if failure is None:
                self._mean_seconds = _MEMORY * self._mean_seconds + (1 - _MEMORY) * (time.perf_counter() - ticket.arrived)
            elif isinstance(failure, ApiError):
                facts["error"] = failure.message
                self.cut_off += failure.code == STOPPED
            elif isinstance(failure, asyncio.CancelledError):
                facts["error"] = "cut off"
                self.cut_off += 1
            elif isinstance(failure, ClientGone):
                facts["status"] = CLIENT_GONE

        if prepared.asked.stream:
            return EventStream(answer.events(), self.options.timeout, ended)
        failure: BaseException | None = None
        try:
            return JSONResponse(await while_connected(request.receive, answer.whole(), self.options.timeout))
        except TimeoutError:
            failure = too_late(self.options.timeout)
            raise failure from None
        except BaseException as error:
            failure = error
            raise
        finally:
            ended(failure)

    def _hold(self, count: int) -> None:
        """Keep room for so many completions. Raises `ApiError` where there is none."""
        most = self._places + self.options.max_waiting
        if count > most:
            raise ApiError(
                400, f"{count} answers in one request are more than this server takes at once, {most}; ask for fewer (`n`, or prompts)", param="n"
            )
        if self._held + count > most:
            waits = self._mean_seconds * (self._held + count - self._places) / self._places
            seconds = min(max(1, math.ceil(waits)), _LONGEST_RETRY)
            raise ApiError(429, f"too many requests wait; try again in {seconds} s", code="queue_full", retry_after=seconds)
        self._held += count

    def _words(self, answer: Answer) -> dict[str, Any]:
        """Prompts as the model read them, and answers as far as they came."""
        decode = self.preparer.tokenizer.decode
        return {
            "prompts": [str(decode(request.sequences[0].prompt)) for request in answer.ticket.requests],
            "answers": [told.text for told in answer.told],
        }
