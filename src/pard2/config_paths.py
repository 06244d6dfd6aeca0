"""Which names in a run are paths, and where they lead: in a YAML file, from the directory of that file."""

import glob
import os
import re
from typing import Any

# Fields of a run that may name something on this disk; the last two name nothing else.
_MODELS = (("target", "name"), ("draft", "path"))
_SOURCES = (("data", "train"), ("data", "evaluation"))
_DIRECTORIES = (("features", "cache"), ("loop", "output"))
_NO_PATHS = ("-", "smollm2")  # standard input, and the embedded pair
_FILE = re.compile(r"\.(jsonl|json|csv|tsv|txt|parquet|parq|pq|gguf)(\.(gz|xz))?$", re.IGNORECASE)
_PATTERN = re.compile(r"[*?[]")


def place(document: dict[str, Any], directory: str) -> None:
    """Let the relative paths of a run lead from `directory`, in place.

    A name that could also be a hub id is a path where something of that name exists there.

    document: sections of fields, not checked yet; what is no text is left alone.
    """
    for fields, slashes in ((_MODELS, 2), (_SOURCES, None), (_DIRECTORIES, 0)):
        for section, field in fields:
            inner = document.get(section)
            if not isinstance(inner, dict) or field not in inner:
                continue
            value = inner[field]
            if isinstance(value, list):
                inner[field] = [_placed(one, directory, slashes) for one in value]
            else:
                inner[field] = _placed(value, directory, slashes)


def _placed(name: Any, directory: str, slashes: int | None) -> Any:
    """slashes: with so many or more a name is no hub id; None where it may have any number."""
    if not isinstance(name, str) or not name or os.path.isabs(name) or (slashes != 0 and name in _NO_PATHS):
        return name
    if _PATTERN.search(name):
        return os.path.normpath(os.path.join(glob.escape(directory), name))
    path = os.path.normpath(os.path.join(directory, name))
    surely = name.startswith(".") or _FILE.search(name) or (slashes is not None and name.count("/") >= slashes)
    folder, _, split = path.rpartition(":")  # `directory:split`
    return path if surely or os.path.exists(path) or (split and os.path.isdir(folder)) else name
