"""Where the server listens. Nothing heavy is imported: a wrong address is told before a model is loaded."""

import errno
import socket

from pard2.errors import Pard2Error


def open_socket(host: str, port: int) -> socket.socket:
    """Bound, and not yet listening: whoever connects is refused until there is somebody to answer.

    Raises `Pard2Error` for an address that cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise Pard2Error(f"`host` {host!r} is no address of this machine; give another, such as 127.0.0.1") from None
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise Pard2Error(f"`port` {port} is in use at {host}; give another, or 0 for a free one") from None
        if error.errno == errno.EACCES:
            raise Pard2Error(f"`port` {port} may not be used by you; give one above 1023") from None
        raise Pard2Error(f"`host` {host!r} is no address of this machine; give another, such as 127.0.0.1") from None
    return opened


def url_of(opened: socket.socket) -> str:
    """Where a client on this machine finds it."""
    host, port = opened.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
