"""How a setting is declared: a field of a record with its default, its help and its command-line flag.

It knows no command line.
"""

import math
from dataclasses import dataclass
from typing import Any

from pard2.errors import Pard2Error


@dataclass(frozen=True)
class Flag:
    """How the command line shows a field.

    help: one line.
    names: such as ("-m", "--method"), or one of the form "--on/--off".
    metavar: what stands for the value; None where its type says enough.
    group: heading that it stands under; None for the usual one.
    """

    help: str
    names: tuple[str, ...]
    metavar: str | None
    group: str | None


def flag(help: str, *names: str, metavar: str | None = None, group: str | None = None) -> dict[str, Flag]:
    """The metadata of a dataclass field that the command line shows by these names."""
    return {"flag": Flag(help, names, metavar, group)}


def check(name: str, value: object, holds: bool, wanted: str) -> None:
    """Raises `Pard2Error` unless `holds`; the message has the parameter's own name in backticks, which the
    command line makes its flag.
    """
    if not holds:
        raise Pard2Error(f"`{name}` {' '.join(str(value).split())[:60]}: {wanted}")  # of a wrong type, it may be long


def check_number(name: str, value: object, holds: bool, wanted: str) -> None:
    """`check` of what is to be a number: of another type, that is said."""
    shown = value if value is None or type(value) in (int, float) else f"{value!r}, a {type(value).__name__}"
    check(name, shown, holds, wanted)


# What comes from JSON may be of any type; and NaN, which no comparison holds for, is in no range.
def is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    """Whether it is an `int` from low to high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_real(value: Any, low: float, high: float) -> bool:
    """Whether it is a number from low to high."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
