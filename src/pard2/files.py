"""Outputs: written whole or not at all, by one process at a time, never over an input or other data."""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from pard2.errors import Pard2Error, first_line
from pard2.reading import read_json

_KEPT = "; what it held before is kept"


@dataclass(frozen=True)
class Kind:
    """A kind of directory that may be replaced.

    name: what errors call it.
    mark: a JSON file that each such directory holds.
    keys: one of these is in that file.
    files: patterns of all names that such a directory may hold.
    """

    name: str
    mark: str
    keys: tuple[str, ...]
    files: tuple[str, ...]


_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "*chat_template*", "vocab*", "merges.txt", "*.model")
_MODEL = ("config.json", "generation_config.json", "model.safetensors", "warp_model.bin", "training.json")
CHECKPOINT = Kind("checkpoint", "config.json", ("spd_type", "pard2_draft_tokens"), (*_MODEL, *_TOKENIZER))
WITH_CARD = replace(CHECKPOINT, name="checkpoint with a card", files=(*CHECKPOINT.files, "README.md"))
PREPARED = Kind("prepared data", "manifest.json", ("format",), ("manifest.json", "ids.json", "tokens-*.safetensors"))


@contextmanager
def writing(path: str | Path, kept: str = "", what: str = "") -> Iterator[None]:
    """Turn a failure to write in this block into a `Pard2Error`: "cannot write WHAT PATH: reason KEPT".

    Beside `OSError` these are the exceptions that safetensors, torch and tokenizers (a bare `Exception`)
    raise then.

    path: the output.
    kept: how the line ends.
    what: comes before the path.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error) not in (SafetensorError, RuntimeError, Exception):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        if not isinstance(error, OSError) and shutil.disk_usage(Path(os.path.realpath(path)).parent).free < 2**20:
            reason = os.strerror(errno.ENOSPC)  # torch reports an unexpected position instead
        raise Pard2Error(f"cannot write {what}{path}: {reason}{kept}") from None


def write_whole(path: Path, data: bytes, kept: str = _KEPT) -> None:
    """Write a file, or replace it; at every moment it is either the old one or the new one.

    kept: how the `Pard2Error` of a file that cannot be written ends.
    """
    real = Path(os.path.realpath(path))  # a link stays a link
    beside = real.with_name(f".{real.name}.partial")
    with writing(path, kept):
        real.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(real)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; when the block ends without an exception, it becomes `path`.

    An existing directory at `path` is replaced. If the block raises, `path` is as it was.

    Raises `Pard2Error` if `path` is a file or cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link stays a link, and its target is replaced
    if os.path.exists(path) and not path.is_dir():
        raise Pard2Error(f"cannot write {path}: it is a file and must be a directory")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent))
    try:
        with writing(path, _KEPT):
            yield beside
            beside.chmod(0o755)
            _exchange(path, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def recover(path: Path) -> None:
    """Restore the old directory after a kill between the two renames of `whole_directory`."""
    path = Path(os.path.realpath(path))
    old = _set_aside(path)
    if os.path.isdir(old) and not path.exists():
        old.rename(path)


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
    """The old directory's name between the two renames; fixed, so that it is found again."""
    return path.with_name(f".{path.name}-old")


def check_output(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raises `Pard2Error`, before any work, for an output that is an input, holds one, or cannot be written.

    inputs: names of all that the command reads; those that are neither files nor directories, such as hub
        ids, are ignored.
    """
    real = Path(os.path.realpath(path))
    for one in inputs:
        if one is None or not os.path.exists(one):
            continue
        if os.path.exists(real) and os.path.samefile(one, real):
            raise Pard2Error(f"cannot write {path}: it is the input itself; name another output")
        if real in Path(os.path.realpath(one)).parents:
            raise Pard2Error(f"cannot write {path}: the input {one} lies in it; name another output")
    with writing(path):
        real.parent.mkdir(parents=True, exist_ok=True)
        # As long a name as any that is written beside it.
        tempfile.NamedTemporaryFile(prefix=f".{real.name}-", suffix="." * 12, dir=real.parent).close()


@contextmanager
def new_file(path: str | Path, inputs: Iterable[str | Path | None] = (), way_out: str = "name another file") -> Iterator[None]:
    """Hold a file for this process alone, whether it exists or not, after `check_output`.

    way_out: what another process that wants it is told to do.
    """
    if os.path.lexists(path) and not os.path.isfile(path):
        raise Pard2Error(f"cannot write {path}: it is not a regular file")
    check_output(path, inputs)
    with _beside_lock(path, way_out):
        yield


@contextmanager
def new_directory(path: Path, force: bool, kind: Kind, inputs: Iterable[str | Path | None] = ()) -> Iterator[None]:
    """Hold a directory that `whole_directory` is going to write, after a check that nothing would be lost.

    Raises `Pard2Error`, before any work is done, for a directory that cannot be written, is an input, or is
    not empty; with `force`, for one that holds anything but an output of this kind.
    """
    if os.path.lexists(path) and not os.path.isdir(path):
        raise Pard2Error(f"cannot write {path}: a file of that name is in the way; name another directory with `output`")
    check_output(path, inputs)
    with _beside_lock(path, "name another directory with `output`"):
        recover(path)
        names = sorted(os.listdir(path)) if path.is_dir() else []
        if names and not force:
            raise Pard2Error(f"{path} is not empty; name another directory with `output`, or give `force` to replace it")
        if names and (found := _foreign(path, names, kind)):
            raise Pard2Error(f"{path} holds {found}, so `force` will not replace it; name another directory with `output`")
        real = Path(os.path.realpath(path))
        for leftover in real.parent.glob(f".{glob.escape(real.name)}-*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed
        yield


def _foreign(path: Path, names: list[str], kind: Kind) -> str | None:
    """What in a directory of these names does not belong to an output of this kind; None if all does."""
    if kind.mark not in names:
        return f"no {kind.name}"
    for name in names:
        if not any(fnmatch(name, pattern) for pattern in kind.files):
            return f"{name!r} beside its {kind.name}"
    marked = read_json(path / kind.mark)
    return None if isinstance(marked, dict) and any(key in marked for key in kind.keys) else f"a {kind.name} that this command does not make"


def claim(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a directory that is filled step by step for this process alone; a kill releases it.

    Creates the directory where it is missing. Raises `Pard2Error` if another process holds it, or it cannot
    be written.
    """
    return _locked(directory / ".lock", directory, "name another output")


def _beside_lock(path: str | Path, way_out: str) -> contextlib.AbstractContextManager[None]:
    real = Path(os.path.realpath(path))  # one lock for all links to it
    return _locked(real.with_name(f".{real.name}.lock"), path, way_out)


@contextmanager
def _locked(lock: Path, shown: str | Path, way_out: str) -> Iterator[None]:
    with writing(shown):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _open_locked(lock)
    if file is None:
        raise Pard2Error(f"another run is writing to {shown}; wait for it, or {way_out}")
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()  # while it is held, so that no process holds a file that is gone


def _open_locked(lock: Path) -> IO[str] | None:
    """The file, held until it is closed; None if another process holds it."""
    while True:
        file = open(lock, "w")  # noqa: SIM115 - open for as long as it is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass  # the process that held it removed it after it was opened here
        file.close()
