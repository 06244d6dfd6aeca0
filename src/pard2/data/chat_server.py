"""A client of one server of the OpenAI chat protocol: a reply, or a reason to retry or to stop.

It never retries and knows no other server. The standard library suffices: an answer takes seconds, so that a
connection for each costs little.
"""

import http.client
import json
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from pard2.data.answers import Reply
from pard2.errors import Pard2Error, first_line

CONNECT_SECONDS = 10.0  # a machine that is switched off must not block a request for its whole timeout


class TryAgain(Exception):
    """A temporary failure.

    after: seconds that the server asks to wait.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Refused(Exception):
    """A failure that is due to the conversation: a second try would fail, too."""


class ChatServer:
    """The server at one address.

    Raises `Pard2Error` for an address or a key that cannot be sent; the key is never shown.
    """

    def __init__(self, address: str, api_key: str | None = None) -> None:
        self.address = address
        self._headers = {"Content-Type": "application/json", "User-Agent": "pard2"}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise Pard2Error("`api_key`: the key holds characters that no HTTP header may hold")
            self._headers["Authorization"] = f"Bearer {api_key}"
        try:
            parts = urlsplit(address)
            self._host, self._port = parts.hostname or "", parts.port
            self._host.encode("idna"), parts.path.encode("ascii")
        except ValueError:  # a port that is not a number, half an IPv6 address, a label of 0 or more than 63 characters
            parts, self._host = urlsplit(""), ""
        blank = " " in address or not address.isprintable()
        if blank or parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment:
            raise Pard2Error(f"`endpoint` {address!r} is not an address such as http://host:8000/v1")
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._path = parts.path.rstrip("/")

    def check(self, model: str, timeout: float) -> None:
        """Ask for the list of models. Raises `Pard2Error` if none comes, or it lacks this model."""
        try:
            status, _, body = self._request("GET", "/models", timeout)
        except TryAgain as error:
            raise Pard2Error(f"`endpoint` {error}; is the server up?") from None
        self._stop_if_unusable(status, body, model)
        try:
            served = [entry["id"] for entry in _parsed(body)["data"]] if status == 200 else None
        except (ValueError, TypeError, KeyError):
            served = None
        if served is None:
            raise Pard2Error(f"`endpoint` {self.address} does not list its models ({status}: {_said(body)})")
        if model not in served:
            names = ", ".join(map(str, served[:10])) or "none"
            raise Pard2Error(f"`endpoint` {self.address} does not serve {model!r}; name what it serves with `model`: {names}")

    def chat(self, fields: dict[str, Any], timeout: float) -> Reply:
        """The reply to one request.

        fields: of the request, `model` and `messages` among them.
        timeout: seconds without a byte.

        Raises `TryAgain`, `Refused`, and `Pard2Error` for a failure that every request would meet.
        """
        sent = fields | {"messages": [_sent(message) for message in fields["messages"]]}
        status, retry_after, body = self._request("POST", "/chat/completions", timeout, sent)
        self._stop_if_unusable(status, body, fields["model"])
        if status in (408, 409, 429) or status >= 500:
            raise TryAgain(f"{self.address}: {status}: {_said(body)}", _seconds(retry_after))
        if status >= 400:
            raise Refused(f"{status}: {_said(body)}")
        return _reply(self.address, body)

    def _stop_if_unusable(self, status: int, body: bytes, model: str) -> None:
        """Raises `Pard2Error` for a status that every request would get."""
        if status in (401, 403):
            advice = "the key was refused" if "Authorization" in self._headers else "a key is needed"
            raise Pard2Error(f"`api_key`: {advice} by {self.address} ({status}: {_said(body)}); give a good one")
        if status in (404, 405) or 300 <= status < 400:
            raise Pard2Error(
                f"`endpoint` {self.address} is not where chat completions of `model` {model} are ({status}: {_said(body)}); most addresses end in /v1"
            )

    def _request(self, method: str, path: str, timeout: float, body: dict[str, Any] | None = None) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and body of the response.

        timeout: seconds without a byte.

        Raises `TryAgain` where there is no complete response.
        """
        connection = self._connection(self._host, self._port, timeout=min(CONNECT_SECONDS, timeout))
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            connection.request(method, self._path + path, None if body is None else json.dumps(body), self._headers)
            response = connection.getresponse()
            return response.status, response.getheader("Retry-After"), response.read()
        except TimeoutError:
            raise TryAgain(f"{self.address}: no answer in time") from None
        except OSError as error:
            raise TryAgain(f"{self.address}: {error.strerror or first_line(error)}") from None
        except http.client.HTTPException as error:
            raise TryAgain(f"{self.address}: {first_line(error)}") from None
        finally:
            connection.close()


def _sent(message: dict[str, Any]) -> dict[str, Any]:
    """A message in the protocol's form: arguments of tool calls, objects in a record, become JSON texts."""
    if not message.get("tool_calls"):
        return message
    calls = [{**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _reply(address: str, body: bytes) -> Reply:
    """The reply that a response holds.

    Raises `TryAgain` for what is not a chat completion, `Refused` for a completion that is not an answer, and
    `Pard2Error` for one whose thoughts the server has taken out.
    """
    try:
        completion = _parsed(body)
        choice = completion["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
        text, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
        tokens = (completion.get("usage") or {}).get("completion_tokens")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise TryAgain(f"{address}: not a chat completion: {_said(body)}") from None
    if thoughts:
        raise Pard2Error(
            f"`endpoint` {address} takes the thoughts out of its answers, and a draft must learn them where they stand; "
            "start the server without its reasoning parser"
        )
    if reason in (None, "abort"):  # of a server that shuts down
        raise TryAgain(f"{address}: the answer was broken off")
    # An answer that a filter or a tool's parser ended, and not the target, must not be learned.
    if reason not in ("stop", "length") or not isinstance(text, str):
        raise Refused(f"no text (finish_reason {reason})" if not text else f"ended by finish_reason {reason}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused("the answer is not Unicode text") from None
    return Reply(text, reason, tokens if isinstance(tokens, int) else 0)


def _parsed(body: bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` for anything else."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _said(body: bytes) -> str:
    """The server's error message, in one line."""
    text = body.decode(errors="replace")
    try:
        answer = _parsed(body)
        answer = answer.get("error", answer)
        text = str(answer if isinstance(answer, str) else answer.get("message") or answer.get("detail") or text)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:200] or "nothing more is said"


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After, a number of seconds or a date, as seconds from now; None for neither."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after or "").timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds)  # in this order NaN gives 0
