"""Reading text that others wrote: whatever is wrong with it is reported, and shown, in one line."""

import json
import re
from pathlib import Path
from typing import Any

from pard2.errors import Pard2Error

LONGEST_TEXT = 2**25  # bytes; no model reads as many at once
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
# control characters, line separators, and halves of surrogate pairs, which cannot be written
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """The text on one line that is safe for a terminal: control characters are written as `\\x1b`.

    keep: characters that are left as they are.
    """
    return _NOT_SHOWN.sub(lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text)


def check_text(text: str) -> None:
    """Raises `ValueError` for half of a surrogate pair, which no tokenizer accepts.

    It comes from JSON's `"\\ud83d"` alone, or from a command-line argument that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds \\u{ord(text[error.start]):04x}, half of a surrogate pair and no character") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, which may begin with a byte order mark.

    Raises `ValueError` with a message that continues a location's name: "is not JSON: ..", "is nested too
    deeply", ..
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    try:
        value = json.loads(text.removeprefix("\ufeff"))
        # Only a text with such an escape is checked by its value; the escape may be half of a whole pair.
        check_text(json.dumps(value, ensure_ascii=False) if _SURROGATE_ESCAPE.search(text) else text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError("holds a number of too many digits" if "digits" in str(error) else str(error)) from None
    return value


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises `Pard2Error` if it is missing, not a regular file, or not JSON."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # reading a pipe might never end
            raise Pard2Error(f"cannot read {path}: it is not a regular file")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise Pard2Error(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path, too
        raise Pard2Error(f"{path!s} {error}") from None


def decode_text(data: bytes, name: str) -> str:
    """The text of UTF-8 bytes, without its byte order mark.

    name: what errors call it.

    Raises `Pard2Error` for more than `LONGEST_TEXT` bytes, and for what is not text.
    """
    if len(data) > LONGEST_TEXT:
        raise Pard2Error(f"{name} holds more than {LONGEST_TEXT:,} bytes, which no model reads at once; cut it into several")
    try:
        if b"\0" not in data:
            return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    raise Pard2Error(f"{name} holds binary data, or text that is not UTF-8; give a text in UTF-8")


def read_text(path: str | Path) -> str:
    """The text of a file or pipe. Raises `Pard2Error` where it cannot be read, and as `decode_text` does."""
    try:
        if Path(path).is_dir() or Path(path).is_block_device():
            raise Pard2Error(f"cannot read {path}: it is neither a file nor a pipe")
        with open(path, "rb") as file:
            data = file.read(LONGEST_TEXT + 1)
    except OSError as error:
        raise Pard2Error(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise Pard2Error(f"{path!s} {error}") from None
    return decode_text(data, str(path))
