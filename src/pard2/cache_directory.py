"""Where what was made once for a machine is kept."""

import os
from pathlib import Path

from pard2.errors import Pard2Error


def cache_directory() -> Path:
    """`$PARD2_CACHE`, else `$XDG_CACHE_HOME/pard2`, else `~/.cache/pard2`."""
    if explicit := os.environ.get("PARD2_CACHE"):
        return Path(explicit)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pard2"
    except RuntimeError:
        raise Pard2Error("this user has no home directory to keep the model in; name a directory with PARD2_CACHE") from None
