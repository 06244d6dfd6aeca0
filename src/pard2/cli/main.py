"""The process of the command `pard2`: Ctrl-C, streams that are closed or full, exit codes.

The commands, and what takes long to import, come when Ctrl-C is taken care of.
"""

import errno
import os
import sys

from pard2.cli import interrupts
from pard2.errors import BAD_INPUT


def main(argv: list[str] | None = None) -> None:
    """Run a command line, by default the process's own, and exit with its code."""
    before = interrupts.install(interrupts.interrupt)
    code: str | int | None = None
    try:
        _open_streams()
        _quiet_libraries()
        from pard2.cli.commands import app, show_warnings
        from pard2.cli.downloads import show_downloads

        show_warnings()
        show_downloads()
        app(args=argv, prog_name="pard2")
    except SystemExit as ending:
        code = ending.code
    except KeyboardInterrupt:  # before the command began
        _say("interrupted")
        code = interrupts.INTERRUPTED
    finally:
        interrupts.install(interrupts.leave if argv is None else before)  # the interpreter's end takes a while, too
    raise SystemExit(_flushed(code))


def _open_streams() -> None:
    """What the caller closed leads nowhere; else the next file would be opened under its number, and whoever
    prints would write into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _flushed(code: str | int | None) -> str | int | None:
    """The exit code once all that was printed is out: 2 where it cannot be, 1 where
    nobody reads it any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if not code and error.errno != errno.EPIPE and stream is sys.stdout:
                _say(f"cannot write the output: {error.strerror}")
            code = code or (1 if error.errno == errno.EPIPE else BAD_INPUT)
            # What it still holds goes nowhere when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _say(message: str) -> None:
    from contextlib import suppress

    with suppress(OSError):  # nowhere may be left to say it
        print(f"error: {message}", file=sys.stderr)


def _quiet_libraries() -> None:
    """Keep the progress bars and warnings of transformers and the hub out of our output; whoever wants them
    sets these.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
