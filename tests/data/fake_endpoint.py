"""A chat server on this machine that misbehaves as it is told to."""

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["_Handler"], None]


class FakeEndpoint(ThreadingHTTPServer):
    """Answers each chat with `echo` of its last message, after the behaviours that `script` lists for it."""

    def __init__(self, models: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.address = f"http://127.0.0.1:{self.server_port}/v1"
        self.script: dict[str, list[Behaviour]] = {}
        self.always: Behaviour | None = None  # in place of an answer, where the script says nothing
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.listings = 0
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.closed = threading.Event()

    @property
    def asked(self) -> Counter[str]:
        """How often each last message was sent."""
        return Counter(request["messages"][-1]["content"] for request in self.requests)

    def close(self) -> None:
        """From now on connections are refused."""
        self.closed.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:  # a client that has hung up is nobody's error
        pass


class _Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint
    request_body: dict[str, Any]
    counted = False  # among the requests that are at once

    def do_GET(self) -> None:
        self.server.listings += 1
        if self.path != "/v1/models":
            self.send(404, "nothing here")
        elif self.server.always is not None:
            self.server.always(self)
        else:
            self.send(200, json.dumps({"object": "list", "data": [{"id": name} for name in self.server.models]}))

    def do_POST(self) -> None:
        server = self.server
        self.request_body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(self.request_body)
            server.headers.append(dict(self.headers))
            server.at_once += 1
            self.counted = True
            server.most_at_once = max(server.most_at_once, server.at_once)
            script = server.script.get(self.said)
            behaviour = script.pop(0) if script else server.always or answer()
        try:
            behaviour(self)
        finally:
            self._no_longer_counted()

    def _no_longer_counted(self) -> None:
        with self.server.lock:
            self.server.at_once -= self.counted
            self.counted = False

    @property
    def said(self) -> str:
        return self.request_body["messages"][-1]["content"]

    def send(self, status: int, body: str, **headers: str) -> None:
        # Before the answer: whoever has it may ask again before this thread runs on.
        self._no_longer_counted()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def fake_endpoint(*models: str) -> Iterator[FakeEndpoint]:
    server = FakeEndpoint(list(models) or ["tiny"])
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.close()


def answer(text: str | None = None, finish_reason: str | None = "stop", **message: Any) -> Behaviour:
    def behave(handler: _Handler) -> None:
        content = f"echo {handler.said}" if text is None else text
        choice = {"index": 0, "message": {"role": "assistant", "content": content} | message, "finish_reason": finish_reason}
        handler.send(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}}))

    return behave


def status(code: int, message: str = "because", **headers: str) -> Behaviour:
    return lambda handler: handler.send(code, json.dumps({"error": {"message": message}}), **headers)


def body(text: str) -> Behaviour:
    return lambda handler: handler.send(200, text)


def silence(handler: _Handler) -> None:
    handler.server.closed.wait(20)


def slowly(seconds: float) -> Behaviour:
    def behave(handler: _Handler) -> None:
        time.sleep(seconds)
        answer()(handler)

    return behave


def reset(handler: _Handler) -> None:
    """Break the connection off in the middle of the body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def half(handler: _Handler) -> None:
    """End the body too early, in good order."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


def die(handler: _Handler) -> None:
    """The server goes, with this request unanswered."""
    threading.Thread(target=handler.server.close).start()
    handler.server.closed.wait()
    time.sleep(0.05)
