"""Text from outside, read so that whatever is wrong with it becomes one line, and shown on one line."""

import json
import re
from pathlib import Path
from typing import Any

from pard2.errors import Pard2Error

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # what a terminal obeys, ends a line at, or cannot write


def printable(text: str, keep: str = "") -> str:
    """Text from outside on one line that a terminal shows and does not obey: control characters as `\\x1b`, but for those of `keep`."""
    return _NOT_SHOWN.sub(lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text)


def check_text(text: str) -> None:
    """Raises `ValueError` for half of a surrogate pair (JSON's `"\\ud83d"` alone, or an argument that is no UTF-8), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds \\u{ord(text[error.start]):04x}, half of a surrogate pair and no character") from None


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says; a byte order mark before it is left out.

    Raises `ValueError`, whose message goes on from the name of the place: "is not JSON: ..", "is nested too deeply", ..
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    try:
        value = json.loads(text.removeprefix("\ufeff"))
        # The escape of a whole pair is looked at, too; only then is the value gone through.
        check_text(json.dumps(value, ensure_ascii=False) if _SURROGATE_ESCAPE.search(text) else text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError("holds a number of too many digits" if "digits" in str(error) else str(error)) from None
    return value


def read_json(path: str | Path) -> Any:
    """The value that a JSON file holds. Raises `Pard2Error` naming the file, be it missing, a pipe, or no JSON."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for for ever
            raise Pard2Error(f"cannot read {path}: it is not a regular file")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise Pard2Error(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path, too
        raise Pard2Error(f"{path!s} {error}") from None
