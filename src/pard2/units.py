"""Seconds, bytes and counts as people read them."""


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes: `12 MB`, `3.4 GB`; decimal units, as disks are sold."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def counted(number: int, what: str) -> str:
    """`1 answer`, `2,000 answers`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def amount(count: float) -> str:
    """`512`, `12.3 k`, `134.5 M`, `8.03 B`."""
    for unit, name, digits in ((1e9, "B", 2), (1e6, "M", 1), (1e4, "k", 1)):
        if count >= unit:
            return f"{count / (1e3 if name == 'k' else unit):.{digits}f} {name}"
    return f"{count:,.0f}"
