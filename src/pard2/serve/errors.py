"""Errors in the shape and with the status codes of OpenAI's API."""

import re
from typing import Any

from pard2.engine.prompts import PromptTooLong
from pard2.errors import Pard2Error

_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
STOPPED = "stopped"  # the code of what the server's end ended
_NAMED = re.compile(r"`(\w+)`")


class ApiError(Exception):
    """What a client is told in place of an answer.

    status: of HTTP.
    param: the field of the request that is to blame.
    code: a word that programs look for.
    retry_after: seconds after which the same request may succeed.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refused(error: Pard2Error, param: str | None = None) -> ApiError:
    """Status 400 for what the engine refuses. param: by default the first name in backticks."""
    named = _NAMED.search(str(error))
    code, message = None, str(error)
    if isinstance(error, PromptTooLong):  # some clients look for this code, others for these words
        code, message = "context_length_exceeded", f"{error}; this model's maximum context length is exceeded"
    return ApiError(400, message, param=param or (named[1] if named else None), code=code)
