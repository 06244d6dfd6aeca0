"""Directories that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pard2.errors import Pard2Error


@contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; when the block ends well, it takes `path`'s place.

    An existing directory at `path` is replaced. If the block raises, `path` is as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise Pard2Error(f"cannot write {path}: {error.strerror}") from None
    try:
        yield beside
        beside.chmod(0o755)
        if path.exists():
            old = beside.with_name(beside.name + "-old")
            path.rename(old)
            beside.rename(path)
            shutil.rmtree(old)
        else:
            beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
