"""The first to see a request and the last to see its answer: its id, its key, its line in the log.

It knows nothing of what is asked. Handlers put what the log shall say into `scope["pard2"]`.
"""

import asyncio
import hmac
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pard2.serve.access_log import AccessLog
from pard2.serve.errors import ApiError
from pard2.serve.metrics import Metrics

MISTAKE = ApiError(500, "the server made a mistake; its log says more", code="internal")
CLIENT_GONE = 499  # as nginx logs it; no client ever sees it
_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_QUIET_PATHS = ("/health", "/metrics")  # asked every few seconds by programs
log = logging.getLogger("pard2.serve")


class Gate:
    """api_key: that every path but the opened ones needs; None for none."""

    def __init__(self, app: ASGIApp, metrics: Metrics, lines: AccessLog, api_key: str | None = None, opened: tuple[str, ...] = ()) -> None:
        self._app, self._metrics, self._lines = app, metrics, lines
        self._key = None if api_key is None else api_key.encode()
        self._open = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, started = Headers(scope=scope), time.perf_counter()
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(16)
        facts: dict[str, Any] = {}
        scope["pard2"] = facts
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            if self._allows(scope["path"], headers):
                await self._app(scope, receive, noting)
            else:
                await error_response(ApiError(401, "the API key is missing or wrong: send `Authorization: Bearer KEY`", code="invalid_api_key"))(
                    scope, receive, noting
                )
        except asyncio.CancelledError:
            pass  # the server's end, which the service has told the client if there was time; nothing is to be cleared up here
        except Exception as error:
            log.error("request %s failed, %s", request_id, type(error).__name__, exc_info=True)
            if not status:
                await error_response(MISTAKE)(scope, receive, noting)
        finally:
            self._note(scope, request_id, facts.pop("status", status), time.perf_counter() - started, facts)

    def _allows(self, path: str, headers: Headers) -> bool:
        if self._key is None or path in self._open:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # All keys take equally long: else the time would tell how much of one is right.
        return hmac.compare_digest(key.strip().encode("latin-1", "replace"), self._key) and scheme.lower() == "bearer"

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
        if status == CLIENT_GONE:
            self._metrics.abandon()
        elif status >= 400:
            self._metrics.refuse(status)
        if scope["path"] in _QUIET_PATHS and status < 400:
            return
        client = scope.get("client")
        line = {"client": client[0] if client else None, "http_method": scope["method"], "path": scope["path"], "status": status}
        self._lines.write(line | {"seconds": round(seconds, 6), "request_id": request_id} | facts)


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)
