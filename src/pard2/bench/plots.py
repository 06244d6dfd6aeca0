"""The pictures of a report, by matplotlib: small panels, one beside the other, each readable on a telephone.

A panel shows one suite under the same conditions (batch size, temperature), and says so in its title. What is
drawn depends on the results alone; how a page shows it is not known here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pard2.bench import panels
from pard2.bench.canvas import STYLE, Look, looks
from pard2.bench.entries import Entry
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Panel:
    """name: of a file. title: what it shows."""

    name: str
    title: str
    figure: "Figure"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Panels that belong together. words: how to read them."""

    title: str
    words: str
    panels: list[Panel]


def check_plots() -> None:
    """Raises `Pard2Error` where there is no matplotlib."""
    if find_spec("matplotlib") is None:
        raise Pard2Error("pictures need matplotlib: pip install 'pard2[plot]'")


def draw(entries: Sequence[Entry]) -> list[Pictures]:
    """All pictures that there are results for."""
    import matplotlib

    own = [entry for entry in entries if not entry.plain]
    first = min((entry.result["batch_size"] for entry in own), default=1)
    alone = [entry for entry in own if entry.result["batch_size"] == first]
    look = looks(*(list(dict.fromkeys(entry.way for entry in entries if entry.plain == plain)) for plain in (False, True)))
    pictures = (
        ("Speed-up and acceptance length", _SPEED, "speed", own, panels.speed),
        ("Acceptance by position", _POSITION.format(panels.FEWEST_CYCLES, first), "positions", alone, panels.positions),
        ("Acceptance length against K", _LENGTH.format(first), "draft-length", alone, panels.lengths),
        ("Where the time of a cycle goes", _TIME, "time", entries, panels.times),
        ("Throughput against latency", _THROUGHPUT, "throughput", entries, panels.throughput),
    )
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        drawn = [Pictures(title=title, words=words, panels=list(_panels(name, some, look, make))) for title, words, name, some, make in pictures]
    return [one for one in drawn if one.panels]


_SPEED = (
    "How many times faster than plain decoding at the same batch size, and tokens that a cycle emits for a sequence, the target's own included. "
    "Thin lines are 95 % intervals; the upright line is plain decoding."
)
_POSITION = (
    "Of the cycles that proposed a token at a position: the share that accepted it, as far as {} cycles or more did. "
    "Batch size {}; of several K the largest."
)
_LENGTH = "Tokens that a cycle emits for a sequence, by how many it proposes. Batch size {}; bars are 95 % intervals."
_TIME = "Milliseconds of a cycle, all suites together: in the draft, in the target, and elsewhere."
_THROUGHPUT = "Tokens a second of the whole batch against milliseconds a token of one sequence; numbers are batch sizes. Of several K the fastest."

Make = Callable[[str, Sequence[Entry], Mapping[str, Look]], "Figure | None"]


def _panels(name: str, entries: Sequence[Entry], look: Mapping[str, Look], make: Make) -> Iterable[Panel]:
    """A panel for each choice of suite, batch size and temperature that the picture does not show itself."""
    suite_too, batch_too = name != "time", name not in ("throughput", "positions", "draft-length")
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        batch, temperature = entry.conditions
        groups.setdefault((entry.suite if suite_too else "", batch if batch_too else 0, temperature), []).append(entry)
    several_batches, several_heats = (len({key[i] for key in groups}) > 1 for i in (1, 2))
    for number, ((suite, batch, temperature), some) in enumerate(groups.items(), 1):
        told = (suite, f"batch {batch}" if several_batches else "", f"temperature {temperature:g}" if several_heats else "")
        title = ", ".join(filter(None, told))
        figure = make(title, some, look)
        if figure is not None:
            yield Panel(name=f"{name}-{number}", title=title or name, figure=figure)
