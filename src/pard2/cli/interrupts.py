"""Ctrl-C at any moment: one line and exit code 130.

It imports next to nothing, so that it stands before everything else.
"""

import os
import signal

TYPE_CHECKING = False  # which checkers of types take for true; importing typing takes longer than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from signal import _HANDLER
    from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_SHOW_CURSOR = b"\x1b[?25h"  # which a spinner has hidden

seen = False
before_leaving: "Callable[[], None] | None" = None  # gives the terminal back as it was


def install(handler: "_HANDLER") -> "_HANDLER":
    """Let this function answer Ctrl-C; returns what did before.

    An ignored Ctrl-C, as of a shell's background jobs, stays ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        if before != signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)
    except ValueError:
        pass  # another thread than the main one, which alone hears of it
    return before


def leave(*_signal: object) -> None:
    """Say so and end at once: where nothing is left to be lost."""
    if before_leaving is not None:
        before_leaving()
    try:
        os.write(2, _SHOW_CURSOR * os.isatty(2) + b"error: interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def interrupt(_signal: int, frame: "FrameType | None") -> None:
    """`KeyboardInterrupt`, but within an import: there it may be swallowed, or taken for a package that is
    missing, and nothing is being written.
    """
    global seen
    seen = True
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame is not None:
        leave()
    raise KeyboardInterrupt
