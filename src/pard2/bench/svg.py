"""A picture as SVG that lies in a page: its letters and colours are the page's, light or dark."""

import io
import re
from html import escape
from typing import TYPE_CHECKING

from pard2.bench.canvas import COLOURS, GRID, INK, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIABLES = {INK: "--ink", GRID: "--grid"} | {colour: f"--way-{number}" for number, colour in enumerate(COLOURS)}
_COLOUR = re.compile("|".join(_VARIABLES))
_NO_DATE = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def page_svg(figure: "Figure", title: str, number: int) -> str:
    """An `<svg>` element, as wide as its place in the page.

    title: for those who do not see it
    number: of the picture; no two of a page have the same one, nor do their parts
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_DATE)
    head, _, body = file.getvalue().partition("<svg ")[2].partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None, "matplotlib writes one"
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>picture{number}-", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" '
        f'aria-label="{escape(title)}">{re.sub("(<[^>]*>)", _in_colours, body)}'
    )


def _in_colours(tag: re.Match[str]) -> str:
    """A tag whose colours and fonts are left to the page; the text between tags stays as it is."""
    plain = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", tag[0])  # older versions of matplotlib write this, newer ones that
    plain = re.sub(r"font-family: [^;\"]*; ?", "", plain)
    return _COLOUR.sub(lambda colour: f"var({_VARIABLES[colour[0]]})", plain)


def png(figure: "Figure") -> bytes:
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(file, format="png", dpi=200, facecolor="white")
    return file.getvalue()
