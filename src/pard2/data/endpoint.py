"""Answers of a model that one or several servers offer: concurrent requests, retries, balanced load.

It does not know what the answers are used for, nor the form of a request.
"""

import random
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from pard2.data.answers import Reply, seed_of
from pard2.data.chat_server import ChatServer, Refused, TryAgain
from pard2.data.records import Record
from pard2.errors import Pard2Error

CHECK_SECONDS = 30.0
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
MOST_LOST = 64  # consecutive records whose tries all failed: then the server is down, rather than the records bad
RECORD_FIELDS = ("tools", "chat_template_kwargs")  # arguments of the chat template, which training must know, too
OWN_FIELDS = frozenset({"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stream", "n", *RECORD_FIELDS})


class _Lost(Exception):
    """All tries failed."""


@dataclass
class _Load:
    """A server and its load.

    in_flight: requests without an answer yet.
    failed: consecutive tries that failed.
    rests_until: on the clock `time.monotonic`; until then other servers are preferred.
    """

    server: ChatServer
    in_flight: int = 0
    failed: int = 0
    rests_until: float = 0.0


class Endpoints:
    """One model, served at one address or several; `reply` is a `Replier`.

    settings: `answer_settings` of the run.
    api_key: sent to every address.
    concurrency: requests at once, over all addresses.
    timeout: seconds without a byte after which a try has failed.
    retries: further tries of a request after a temporary failure.
    backoff: seconds before the first retry, approximately; it doubles with each.

    Raises `Pard2Error` for an address, key or extra field that cannot be sent.
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
        self._fields = self._request_fields(model, settings)
        self._seed = settings.get("seed")
        self._loads = [_Load(ChatServer(address, api_key)) for address in addresses]
        self._model = model
        self._concurrency, self._timeout, self._retries, self._backoff = concurrency, timeout, retries, backoff
        self._lock = threading.Lock()
        self._random = random.Random()  # the global one is the caller's

    @staticmethod
    def _request_fields(model: str, settings: dict[str, Any]) -> dict[str, Any]:
        extra = settings.get("extra_body", {})
        own = sorted(OWN_FIELDS & extra.keys())
        if own:
            raise Pard2Error(f"`extra_body` may not hold {own[0]!r}, which the other options or the records decide")
        fields = {"model": model, "max_tokens": settings["max_new_tokens"], "temperature": settings["temperature"]}
        return fields | ({"top_p": settings["top_p"]} if "top_p" in settings else {}) | extra

    def check(self) -> None:
        """Ask every address for its models. Raises `Pard2Error` if one fails, or lacks this model."""
        for load in self._loads:
            load.server.check(self._model, min(CHECK_SECONDS, self._timeout))

    def reply(self, records: list[Record]) -> Generator[tuple[Record, Reply]]:
        """The records with their replies, as they arrive.

        Raises `Pard2Error` for a failure that every record would meet.
        """
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
                except BaseException as error:  # raised in the caller's thread
                    made.put((record, error))
                    stop.set()

        # At exit Python waits for the threads of a pool, for as long as the server takes; after Ctrl-C it
        # must not.
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
                            f"`endpoint`: {MOST_LOST} records in a row were not answered, at last: {outcome}; "
                            "what is there is kept, and the same command goes on from there"
                        )
                else:
                    raise outcome
        finally:
            stop.set()

    def _answer(self, record: Record, stop: threading.Event) -> Reply:
        for attempt in range(self._retries + 1):
            with self._lock:
                load = min(self._loads, key=lambda load: (time.monotonic() < load.rests_until, load.in_flight))
                load.in_flight += 1
            try:
                reply = load.server.chat(self._request(record), self._timeout)
            except Refused as error:
                return Reply(None, "error", error=str(error))
            except TryAgain as error:
                last = error
                wait = self._wait(attempt, error.after)
                with self._lock:
                    load.failed += 1
                    load.rests_until = time.monotonic() + self._wait(load.failed - 1, error.after)
            else:
                with self._lock:
                    load.failed, load.rests_until = 0, 0.0
                return reply
            finally:
                with self._lock:
                    load.in_flight -= 1
            if attempt < self._retries:
                stop.wait(wait)
            if stop.is_set():
                break
        raise _Lost(f"{last} (tried {self._retries + 1} times)")

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds before the next try, partly random: requests that failed together return one by one.

        asked: seconds that the server asks to wait.
        """
        if asked is not None:
            return min(asked, self._timeout) + self._random.uniform(0.0, self._backoff)
        return min(self._backoff * 2.0 ** min(attempt, 30), LONGEST_WAIT) * self._random.uniform(0.5, 1.0)

    def _request(self, record: Record) -> dict[str, Any]:
        # 31 bits: some servers store a seed in 32.
        seed = {} if self._seed is None else {"seed": seed_of(self._seed, record["id"]) >> 32}
        own = {name: record[name] for name in RECORD_FIELDS if record.get(name)}
        return self._fields | seed | own | {"messages": record["messages"]}
