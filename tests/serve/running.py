"""A server over tiny random models in this process, and a client that says what came back."""

import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from chat_tokenizer import END_ID, MASK_ID, VOCABULARY, byte_tokenizer
from pard2 import Engine
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.serve.address import open_socket
from pard2.serve.engines import Engines
from pard2.serve.server import Server
from pard2.serve.service import Service
from pard2.serve.settings import ServeOptions
from tiny import set_eos, tiny_draft, tiny_model

CONTEXT = 512
NAME = "tiny"
HELLO = [{"role": "user", "content": "Hello"}]


def new_target() -> Target:
    target = Target(tiny_model(layers=3, vocab=VOCABULARY, context=CONTEXT, initializer_range=0.2), byte_tokenizer(), NAME)
    set_eos(target, END_ID)
    return target


def new_draft(target: Target) -> Draft:
    return tiny_draft(target, [0, 2], draft_tokens=6, projection=0.05, mask_token=MASK_ID)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        held = self.json
        assert list(held) == ["error"] and set(held["error"]) == {"message", "type", "param", "code"}, held
        assert "\n" not in held["error"]["message"]
        return held["error"]

    @property
    def events(self) -> list[Any]:
        """The JSON of a stream, which must end as it should."""
        blocks = [block for block in self.text.split("\n\n") if block and not block.startswith(":")]
        assert all(block.startswith("data: ") for block in blocks), blocks
        assert blocks[-1] == "data: [DONE]"
        return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


class Running:
    """A server on a free port, and its parts."""

    def __init__(self, engine: Engine, arguments: dict[str, Any] | None = None, **options: Any) -> None:
        self.engine = engine
        self.service = Service(Engines(engine, options.pop("engines", 3)), NAME, ServeOptions(port=0, **options), arguments)
        self._socket = open_socket("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.log = io.StringIO()
        self.server = Server(self.service, self.log)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        wait_until(lambda: self.server.started)

    def stop(self) -> None:
        self.server.handle_exit(15, None)
        self._thread.join(30)
        self.service.stop(30)
        assert not self._thread.is_alive()

    @property
    def lines(self) -> list[str]:
        """What it has logged."""
        return self.log.getvalue().splitlines()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """A body that is neither text nor bytes is sent as JSON."""
        with contextlib.closing(self.connect()) as connection:
            self.ask(connection, method, path, body, **headers)
            response = connection.getresponse()
            return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read().decode())

    @staticmethod
    def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str) -> None:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            given = {"Content-Type": "application/json"} | given
            body = body if isinstance(body, str | bytes) else json.dumps(body)
        connection.request(method, path, body, given)

    def chat(self, messages: Any = None, **fields: Any) -> Reply:
        held = {"messages": HELLO if messages is None else messages, "temperature": 0, "max_tokens": 24} | fields
        return self.send("POST", "/v1/chat/completions", {k: v for k, v in held.items() if v is not ...})

    def complete(self, prompt: Any = "Once", **fields: Any) -> Reply:
        held = {"prompt": prompt, "temperature": 0, "max_tokens": 24} | fields
        return self.send("POST", "/v1/completions", {k: v for k, v in held.items() if v is not ...})

    def is_empty(self) -> bool:
        """Whether no request has left anything behind: neither here nor in any engine."""
        engines = self.service.engines
        free = all(engine.idle and engine.free_cache_tokens == engine.cache_tokens for engine in engines.all)
        return free and not self.service._held and not self.service._tickets and not self.service._worker._tickets

    def metric(self, name: str, **labels: str) -> float:
        """The value of a series, all of those that have these labels added up."""
        lines = [line for line in self.send("GET", "/metrics").text.splitlines() if line.split("{")[0] == name]
        assert lines, name
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(f'{k}="{v}"' in line for k, v in labels.items()))


@contextlib.contextmanager
def running(engine: Engine, arguments: dict[str, Any] | None = None, **options: Any) -> Iterator[Running]:
    server = Running(engine, arguments, **options)
    try:
        yield server
    finally:
        server.stop()


def wait_until(holds: Any, seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.005)


class Brake:
    """Holds an engine before its next cycle until it is let go, or lets single cycles pass."""

    def __init__(self, engine: Engine) -> None:
        self.cycles = 0
        self._free, self._tokens = threading.Event(), threading.Semaphore(0)
        step = engine.step

        def braked() -> None:
            if not self._free.is_set():
                self._tokens.acquire()
            step()
            self.cycles += 1

        engine.step = braked  # type: ignore[method-assign]

    def pass_cycles(self, count: int = 1) -> None:
        before = self.cycles
        for _ in range(count):
            self._tokens.release()
        wait_until(lambda: self.cycles >= before + count)

    def let_go(self) -> None:
        self._free.set()
        self._tokens.release()
