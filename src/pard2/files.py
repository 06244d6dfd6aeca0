"""Directories that appear whole or not at all, and that one process at a time writes to."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pard2.errors import Pard2Error, first_line


@contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; when the block ends well, it takes `path`'s place.

    An existing directory at `path` is replaced. If the block raises, `path` is as it was. Raises `Pard2Error` if
    `path` is a file or cannot be written.
    """
    path = Path(path).resolve()  # a link stays a link, and its target is replaced
    if path.exists() and not path.is_dir():
        raise Pard2Error(f"cannot write {path}: it is a file and must be a directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise Pard2Error(f"cannot write {path}: {error.strerror}") from None
    try:
        yield beside
        beside.chmod(0o755)
        _exchange(path, beside)
    except Exception as error:
        if not is_unwritable(error):
            raise
        raise Pard2Error(f"cannot write {path}: {getattr(error, 'strerror', None) or first_line(error)}; what it held before is kept") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def is_unwritable(error: Exception) -> bool:
    """Whether a file could not be written, by what Python, safetensors, torch or a tokenizer (which raises no more than an `Exception`) says then."""
    return isinstance(error, OSError) or type(error) in (SafetensorError, RuntimeError, Exception)


def recover(path: Path) -> None:
    """Put back a directory that a kill caught between the two renames of `whole_directory`."""
    old = _set_aside(path.resolve())
    if old.is_dir() and not path.exists():
        old.rename(path.resolve())


def _exchange(path: Path, beside: Path) -> None:
    old = _set_aside(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    try:
        if path.exists():
            path.rename(old)
        beside.rename(path)
    except BaseException:  # Ctrl-C included
        recover(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _set_aside(path: Path) -> Path:
    """Where the old directory waits; one fixed name, so that it is found again."""
    return path.with_name(f".{path.name}-old")


@contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process alone; a kill lets go of it.

    Makes the directory if need be. Raises `Pard2Error` if another process holds it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "w")  # noqa: SIM115 - open for as long as the claim holds
    except OSError as error:
        raise Pard2Error(f"cannot write {directory}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Pard2Error(f"another run is writing to {directory}; wait for it, or name another output") from None
        yield
