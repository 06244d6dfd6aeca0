"""What all pictures of a report have in common: size, letters, colours, and how a panel is laid out.

A panel is as wide as a telephone, and is not scaled down where it stands beside others.
"""

import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b62a4", "#c4510c", "#1b7f4b", "#7a4fb5", "#8f6b00", "#b83a7a", "#0f7f8a", "#5c6670")  # of ways to decode, in turn
INK, GRID = "#1d232a", "#d5dae0"
Look = dict[str, Any]  # of a line, as matplotlib takes it
_MARKERS = "osD^vPX*"
_WIDTH, _SIDE, TEXT_LINE = 4.0, 0.08, 0.17  # inches: of a panel, of its margin, of a line of text
_LETTERS = 52  # of a line of text as wide as a panel
STYLE = {
    "font.family": "DejaVu Sans",  # which matplotlib brings; a page takes its own, which is narrower
    "font.size": 8.5,
    "text.parse_math": False,  # a suite may have a dollar in its name
    "svg.fonttype": "none",
    "svg.hashsalt": "pard2",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "axes.grid": True,
    "axes.axisbelow": True,
}


def canvas(title: str, height: float, columns: int = 1, left: float = _SIDE, below: float = 0.5) -> "tuple[Figure, list[Axes]]":
    """Axes side by side, `height` inches high and `left` inches from the left, under a title.

    below: inches for what the axis says, and for a legend
    """
    from matplotlib.figure import Figure

    title = textwrap.fill(title, _LETTERS)
    above = _SIDE + TEXT_LINE * (title.count("\n") + 1) * bool(title)
    total, width = above + height + below, (_WIDTH - left - _SIDE) / columns
    figure = Figure((_WIDTH, total))
    figure.text(_SIDE / _WIDTH, 1 - _SIDE / 2 / total, title, va="top", fontsize=9.5)
    gap = 0.2 * (columns > 1)
    axes = [figure.add_axes(((left + i * width) / _WIDTH, below / total, (width - gap) / _WIDTH, height / total)) for i in range(columns)]
    for one in axes:
        one.tick_params(length=0)
        one.locator_params(nbins=5 if columns == 1 else 3)
        one.grid(axis="both" if columns == 1 and left > _SIDE else "x", linewidth=0.6)
    return figure, axes


def named_bars(title: str, names: Sequence[str], columns: int, below: float = 0.5) -> "tuple[Figure, list[Axes]]":
    """A place for a bar of each name, number 0 on top; the name stands above its bar."""
    figure, axes = canvas(title, 0.36 * len(names) + 0.1, columns, below=below)
    for place, name in enumerate(names):
        axes[0].text(0, place - 0.25, _short(name, _LETTERS), va="bottom")
    for one in axes:
        one.set_ylim(len(names) - 0.6, -0.8)
        one.set_yticks([])
        one.spines["left"].set_visible(False)
    return figure, axes


def line_axes(title: str, names: int, along: str, up: str) -> "tuple[Figure, Axes]":
    """Axes for so many lines, with room for their legend."""
    figure, (axes,) = canvas(title, 1.9, left=0.62, below=0.4 + TEXT_LINE * (names + 0.3))
    axes.set_xlabel(along)
    axes.set_ylabel(up)
    return figure, axes


def looks(ways: Sequence[str], bases: Collection[str]) -> dict[str, Look]:
    """How the line of each way looks; beyond as many as there are colours it is dashed.

    bases: others, which are compared with; in the colour of the letters
    """
    found = {
        way: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3],
            "label": way,
            "markersize": 4,
            "linewidth": 1.4,
        }
        for number, way in enumerate(ways)
    }
    return found | {way: {"color": INK, "marker": ".", "linestyle": ":", "label": way} for way in bases}


def legend(figure: "Figure", axes: "Axes", columns: int = 1) -> None:
    """At the foot of a panel."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [_short(label, _LETTERS - 6) for label in labels]
    spacing = {"borderpad": 0.2, "labelspacing": 0.3, "handlelength": 2}
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 0), ncols=columns, frameon=False, **spacing)


def _short(name: str, most: int) -> str:
    """Without its middle where it is too long: its end, K and tree, tells it from others."""
    return name if len(name) <= most else f"{name[: most // 2 - 2]} .. {name[-(most // 2 - 2) :]}"
