"""What may happen to a connection while its answer is made: the client leaves, or waits too long."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pard2.serve.answer import DONE, event
from pard2.serve.errors import ApiError

Result = TypeVar("Result")

_BODY_SECONDS = 60.0  # for a body to arrive
_SILENCE = 15.0  # seconds after which a stream says that it lives, for proxies that cut silent connections
_LAST_WORD = 1.0  # seconds for telling a client that its time is over


class ClientGone(Exception):
    """The client has closed its connection."""


def too_late(seconds: float) -> ApiError:
    return ApiError(504, f"the answer was not complete after {seconds:g} s, this server's limit; ask for fewer tokens", code="timeout")


async def read_body(request: Request, most: int) -> bytes:
    """Raises `ApiError` for one that is too long, too slow or no JSON, `ClientGone` for a part of one."""
    # A web page of another origin can send any other type without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the body is JSON: send the header `Content-Type: application/json`")
    too_long = ApiError(413, f"the body has more than {most:,} bytes, this server's limit (--max-body)")
    if int(request.headers.get("content-length") or 0) > most:
        raise too_long
    parts, length = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                length += len(part)
                if length > most:
                    raise too_long
                parts.append(part)
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {_BODY_SECONDS:g} s") from None
    return b"".join(parts)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result], seconds: float) -> Result:
    """What the work brings, unless the client leaves or the time is over: then it is cancelled.

    Raises `ClientGone` and `TimeoutError`.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, watching}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone if watching.done() else TimeoutError
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events.

    seconds: that all of it may take; what is left then, the client is told.
    ended: called with what ended it early, or None.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], seconds: float, ended: Callable[[BaseException | None], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._seconds, self._ended = events, seconds, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: BaseException | None = None
        try:
            await while_connected(receive, self._write(send), self._seconds)
        except ClientGone as error:
            failure = error
        except TimeoutError:
            failure = too_late(self._seconds)
            with suppress(TimeoutError):  # nobody may be reading
                await asyncio.wait_for(self._close(send, failure), _LAST_WORD)
        except ApiError as error:
            failure = error
            await self._close(send, error)
        except BaseException as error:
            failure = error
            raise
        finally:
            self._ended(failure)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in _with_signs_of_life(self._events):
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _close(self, send: Send, error: ApiError) -> None:
        await send({"type": "http.response.body", "body": event(error.body) + DONE})


async def _with_signs_of_life(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events, and a comment, which clients pass over, wherever none comes for long."""
    while True:
        coming: Awaitable[bytes] = asyncio.ensure_future(anext(events))
        try:
            while not (await asyncio.wait({coming}, timeout=_SILENCE))[0]:  # type: ignore[type-var]
                yield b": still waiting\n\n"
            data = await coming
        except StopAsyncIteration:
            return
        finally:
            coming.cancel()  # type: ignore[attr-defined]
        yield data
