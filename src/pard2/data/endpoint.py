"""Answers over HTTP: any server of the OpenAI chat protocol (vLLM, SGLang, llama.cpp, ...), concurrent, retried, spread over several.

It does not know what becomes of the answers. The standard library suffices: an answer takes seconds, a connection for each is nothing.
"""

import http.client
import json
import random
import threading
import time
from collections.abc import Generator
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from pard2.data.answers import Reply, seed_of
from pard2.data.records import Record
from pard2.errors import Pard2Error, first_line

CONNECT_SECONDS = 10.0  # a machine that is switched off must not hold a request for the whole --timeout
CHECK_SECONDS = 30.0
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
MOST_LOST = 64  # records in a row given up after all their tries: the server is gone, not the records bad
RECORD_FIELDS = ("tools", "chat_template_kwargs")  # what a chat template gets beside the messages, and training must know of, too
OWN_FIELDS = frozenset({"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stream", "n", *RECORD_FIELDS})


class _TryAgain(Exception):
    """A failure that may pass. after: seconds that the server asks to wait."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class _Refused(Exception):
    """The record's own failure: asked again, it would fail again."""


class _Lost(Exception):
    """All tries failed."""


class _Server:
    """One address with its load. rests_until: on `time.monotonic`; until then, others are asked first."""

    def __init__(self, address: str, headers: dict[str, str]) -> None:
        self.address = address
        self.in_flight = 0
        self.failed = 0  # tries in a row
        self.rests_until = 0.0
        self._headers = headers
        try:
            parts = urlsplit(address)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:  # a port that is no number, or half of an IPv6 address
            parts, self._host = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment:
            raise Pard2Error(f"--endpoint {address!r} is not an address such as http://host:8000/v1")
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._path = parts.path.rstrip("/")

    def request(self, method: str, path: str, timeout: float, body: dict[str, Any] | None = None) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and body of the response. timeout: seconds of silence. Raises `_TryAgain` where there is no whole response."""
        connection = self._connection(self._host, self._port, timeout=min(CONNECT_SECONDS, timeout))
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            connection.request(method, self._path + path, None if body is None else json.dumps(body), self._headers)
            response = connection.getresponse()
            return response.status, response.getheader("Retry-After"), response.read()
        except TimeoutError:
            raise _TryAgain(f"{self.address}: no answer in time") from None
        except OSError as error:
            raise _TryAgain(f"{self.address}: {error.strerror or first_line(error)}") from None
        except http.client.HTTPException as error:
            raise _TryAgain(f"{self.address}: {first_line(error)}") from None
        finally:
            connection.close()


class Endpoints:
    """One model, served at one address or several; `reply` is a `Replier`.

    settings: `answer_settings` of the run. concurrency: requests under way at once, over all addresses. timeout: seconds without a byte
    after which a request is given up. retries: further tries of a request that failed for a reason that may pass. backoff: seconds before
    the first of them, about; it doubles from try to try. Raises `Pard2Error` for an address, key or extra field that cannot be sent.
    """

    def __init__(
        self,
        addresses: list[str],
        model: str,
        settings: dict[str, Any],
        *,
        api_key: str | None = None,
        concurrency: int = 32,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 1.0,
    ) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "pard2"}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise Pard2Error("--api-key-env: the key holds characters that no HTTP header may hold")
            headers["Authorization"] = f"Bearer {api_key}"
        self._fields = self._request_fields(model, settings)
        self._seed = settings.get("seed")
        self._servers = [_Server(address, headers) for address in addresses]
        self._model, self._has_key = model, api_key is not None
        self._concurrency, self._timeout, self._retries, self._backoff = concurrency, timeout, retries, backoff
        self._lock = threading.Lock()
        self._random = random.Random()  # the global one is the caller's

    @staticmethod
    def _request_fields(model: str, settings: dict[str, Any]) -> dict[str, Any]:
        extra = settings.get("extra_body", {})
        own = sorted(OWN_FIELDS & extra.keys())
        if own:
            raise Pard2Error(f"--extra-body may not hold {own[0]!r}, which the other options or the records decide")
        fields = {"model": model, "max_tokens": settings["max_new_tokens"], "temperature": settings["temperature"]}
        return fields | ({"top_p": settings["top_p"]} if "top_p" in settings else {}) | extra

    def check(self) -> None:
        """Ask every address for its models. Raises `Pard2Error` for one that does not answer, or does not serve this model."""
        for server in self._servers:
            try:
                status, _, body = server.request("GET", "/models", min(CHECK_SECONDS, self._timeout))
            except _TryAgain as error:
                raise Pard2Error(f"--endpoint {error}; is the server up?") from None
            self._stop_if_unusable(server, status, body)
            try:
                served = [entry["id"] for entry in _parsed(body)["data"]] if status == 200 else None
            except (ValueError, TypeError, KeyError):
                served = None
            if served is None:
                raise Pard2Error(f"--endpoint {server.address} does not list its models ({status}: {_said(body)})")
            if self._model not in served:
                names = ", ".join(map(str, served[:10])) or "none"
                raise Pard2Error(f"--endpoint {server.address} does not serve {self._model!r}; name what it serves with --model: {names}")

    def reply(self, records: list[Record]) -> Generator[tuple[Record, Reply]]:
        """The records with their replies, as they come. Raises `Pard2Error` where no record at all would be answered."""
        waiting: SimpleQueue[Record] = SimpleQueue()
        made: SimpleQueue[tuple[Record, Reply | BaseException]] = SimpleQueue()
        for record in records:
            waiting.put(record)
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    record = waiting.get_nowait()
                except Empty:
                    return
                try:
                    made.put((record, self._answer(record, stop)))
                except _Lost as error:
                    made.put((record, error))
                except BaseException as error:  # for the caller's thread to raise
                    made.put((record, error))
                    stop.set()

        # Threads of a pool would be waited for at exit, for as long as the server takes; Ctrl-C must not.
        for _ in range(min(self._concurrency, len(records))):
            threading.Thread(target=work, daemon=True).start()
        lost = 0
        try:
            for _ in records:
                record, outcome = made.get()
                if isinstance(outcome, Reply):
                    lost = 0
                    yield record, outcome
                elif isinstance(outcome, _Lost):
                    lost += 1
                    yield record, Reply(None, "error", error=str(outcome))
                    if lost == MOST_LOST:
                        raise Pard2Error(
                            f"--endpoint: {MOST_LOST} records in a row were not answered, at last: {outcome}; "
                            "what is there is kept, and the same command goes on from there"
                        )
                else:
                    raise outcome
        finally:
            stop.set()

    def _answer(self, record: Record, stop: threading.Event) -> Reply:
        for attempt in range(self._retries + 1):
            with self._lock:
                server = min(self._servers, key=lambda s: (time.monotonic() < s.rests_until, s.in_flight))
                server.in_flight += 1
            try:
                reply = self._chat(server, record)
            except _Refused as error:
                return Reply(None, "error", error=str(error))
            except _TryAgain as error:
                last = error
                wait = self._wait(attempt, error.after)
                with self._lock:
                    server.failed += 1
                    server.rests_until = time.monotonic() + self._wait(server.failed - 1, error.after)
            else:
                with self._lock:
                    server.failed, server.rests_until = 0, 0.0
                return reply
            finally:
                with self._lock:
                    server.in_flight -= 1
            if attempt < self._retries:
                stop.wait(wait)
            if stop.is_set():
                break
        raise _Lost(f"{last} (tried {self._retries + 1} times)")

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds before the next try. The chance in it keeps requests that failed together from coming back together."""
        if asked is not None:
            return min(asked, self._timeout) + self._random.uniform(0.0, self._backoff)
        return min(self._backoff * 2.0 ** min(attempt, 30), LONGEST_WAIT) * self._random.uniform(0.5, 1.0)

    def _chat(self, server: _Server, record: Record) -> Reply:
        # 31 bits: some servers keep a seed in 32.
        seed = {} if self._seed is None else {"seed": seed_of(self._seed, record["id"]) >> 32}
        own = {name: record[name] for name in RECORD_FIELDS if record.get(name)}
        fields = self._fields | seed | own | {"messages": [_sent(message) for message in record["messages"]]}
        status, retry_after, body = server.request("POST", "/chat/completions", self._timeout, fields)
        self._stop_if_unusable(server, status, body)
        if status in (408, 409, 429) or status >= 500:
            raise _TryAgain(f"{server.address}: {status}: {_said(body)}", _seconds(retry_after))
        if status >= 400:
            raise _Refused(f"{status}: {_said(body)}")
        return _reply(server, body)

    def _stop_if_unusable(self, server: _Server, status: int, body: bytes) -> None:
        """Raises `Pard2Error` for what would be the same for every record."""
        if status in (401, 403):
            advice = "the key was refused" if self._has_key else "a key is needed"
            raise Pard2Error(f"--api-key-env: {advice} by {server.address} ({status}: {_said(body)}); name the variable that holds a good one")
        if status in (404, 405) or 300 <= status < 400:
            raise Pard2Error(
                f"--endpoint {server.address} is not where chat completions of --model {self._model} are ({status}: {_said(body)}); "
                "most addresses end in /v1"
            )


def _sent(message: dict[str, Any]) -> dict[str, Any]:
    """A message as the protocol wants it: the arguments of tool calls, objects in a record, are JSON texts there."""
    if not message.get("tool_calls"):
        return message
    calls = [{**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _reply(server: _Server, body: bytes) -> Reply:
    """Raises `_TryAgain` for what is no chat completion, `_Refused` for one that is no answer, `Pard2Error` for one without its thoughts."""
    try:
        completion = _parsed(body)
        choice = completion["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
        text, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
        tokens = (completion.get("usage") or {}).get("completion_tokens")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise _TryAgain(f"{server.address}: not a chat completion: {_said(body)}") from None
    if thoughts:
        raise Pard2Error(
            f"--endpoint {server.address} takes the thoughts out of its answers, and a draft must learn them where they stand; "
            "start the server without its reasoning parser"
        )
    if reason in (None, "abort"):  # a server that shuts down ends its answers so
        raise _TryAgain(f"{server.address}: the answer was broken off")
    # Text that something else than the target ended, a filter or a tool's parser, must not be learned as an answer.
    if reason not in ("stop", "length") or not isinstance(text, str):
        raise _Refused(f"no text (finish_reason {reason})" if not text else f"ended by finish_reason {reason}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Refused("the answer is not Unicode text") from None
    return Reply(text, reason, tokens if isinstance(tokens, int) else 0)


def _parsed(body: bytes) -> Any:
    """Raises `ValueError` for whatever is no JSON."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _said(body: bytes) -> str:
    """What a server says of its error, in one line."""
    text = body.decode(errors="replace")
    try:
        answer = _parsed(body)
        answer = answer.get("error", answer)
        text = str(answer if isinstance(answer, str) else answer.get("message") or answer.get("detail") or text)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:200] or "nothing more is said"


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After as seconds from now: it is a number of them, or a date. None for neither."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after or "").timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds)  # in this order: NaN is greater than nothing
