"""Markdown of text that others wrote: whatever it holds, it is shown as it is, on one line."""

import re
from collections.abc import Sequence

from pard2.reading import printable

# What begins something in the middle of a line. An underscore inside of a word does not, nor does a bracket
# that no link follows.
_SPECIAL = re.compile(r"[\\`*<>|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|&(?=[#\w])")
_LONGEST_RUN = re.compile(r"`+")


def escape(text: str) -> str:
    """The text as it is, wherever it stands but at the beginning of a line."""
    return _SPECIAL.sub(lambda found: "\\" + found[0], printable(text))


def prose(text: str) -> str:
    """`escape` of our own sentences, in which `code` is meant so."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return "".join(code(part) if index % 2 else escape(part) for index, part in enumerate(parts))


def code(text: str) -> str:
    """Inside of a line, tables included."""
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in _LONGEST_RUN.findall(text)), default=0))
    space = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{space}{printable(text)}{space}{fence}".replace("|", "\\|")


def block(text: str, language: str = "") -> str:
    """Lines of code."""
    fence = "`" * max(3, 1 + max((len(run) for run in _LONGEST_RUN.findall(text)), default=0))
    return f"{fence}{language}\n{printable(text, keep=chr(10))}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def facts_table(rows: Sequence[tuple[str, str]]) -> str:
    """Labels and what they name, without a head; the values are Markdown already."""
    return table(("", ""), [(escape(label), value) for label, value in rows])
