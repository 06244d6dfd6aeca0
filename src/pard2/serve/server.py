"""The process that serves: its signals, and how it ends.

The first SIGTERM or Ctrl-C lets running requests end, the second ends at once.
"""

import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import TextIO

import uvicorn

from pard2.serve.app import new_app
from pard2.serve.service import Service

_HEADER_BYTES = 64 * 1024  # of all headers together
_BACKLOG = 1024
_LAST_WORDS = 2  # seconds for telling clients that their answers were cut off
_LAST_PASS = 30.0  # seconds that the pass which runs may hold up the end


class Server(uvicorn.Server):
    """Serves until a signal.

    log: of requests; by default standard output.
    ready: called once clients can connect.
    """

    def __init__(self, service: Service, log: TextIO | None = None, ready: Callable[[], None] | None = None) -> None:
        self._service, self._ready = service, ready
        # The service itself ends what is left after `drain_seconds`, so that clients are told why.
        super().__init__(
            uvicorn.Config(
                new_app(service, log),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                h11_max_incomplete_event_size=_HEADER_BYTES,
                timeout_graceful_shutdown=round(service.options.drain_seconds) + _LAST_WORDS,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ours is the exit code: the signal is not sent again at the end, as uvicorn would do."""
        self._service.drain()
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.start()
        await super().startup(sockets)
        if self._ready is not None:
            self._ready()


def serve(service: Service, opened: socket.socket, ready: Callable[[], None] | None = None) -> None:
    """Answer until a signal comes, and end as it says. Closes the socket. ready: as of `Server`."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        Server(service, ready=ready).run(sockets=[opened])
    finally:
        service.stop(_LAST_PASS)
        opened.close()
