"""A line for each request, for people or programs; prompts and answers only where that is asked for."""

import json
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from pard2.reading import printable


class AccessLog:
    """form: "text" or "json". stream: by default standard output, looked up at each line."""

    def __init__(self, form: str, stream: TextIO | None = None) -> None:
        self._form, self._stream = form, stream

    def write(self, facts: dict[str, Any]) -> None:
        """facts: by name; what is None is left out."""
        held = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **{k: v for k, v in facts.items() if v is not None}}
        line = json.dumps(held, ensure_ascii=False) if self._form == "json" else _as_text(held)
        stream = self._stream or sys.stdout
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):  # a full disk or a closed pipe must not stop the server
            pass


_FIRST = ("time", "client", "http_method", "path", "status")


def _as_text(facts: dict[str, Any]) -> str:
    """`time client POST /path 200 name=value ..`."""
    first = [printable(str(facts[name])) for name in _FIRST if name in facts]
    rest = [f"{name}={printable(value if isinstance(value, str) else json.dumps(value))}" for name, value in facts.items() if name not in _FIRST]
    return " ".join([*first, *rest])
