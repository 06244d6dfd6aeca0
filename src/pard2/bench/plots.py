"""The pictures of a report, by matplotlib: small panels, one beside the other, each readable on a telephone.

A panel shows one suite under the same conditions (batch size, temperature), and says so in its title. What is
drawn depends on the results alone; how a page shows it is not known here.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pard2.bench import panels
from pard2.bench.canvas import STYLE, Look, looks
from pard2.bench.entries import Entry
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_NAME = 60


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


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of picture.

    name: of its files
    make: one panel
    apart: what has panels of its own, beside each temperature
    plain: whether plain decoding is drawn, too
    alone: whether the smallest batch size says enough
    """

    name: str
    make: Callable[[str, Sequence[Entry], Mapping[str, Look]], "Figure | None"]
    title: str
    words: str
    apart: tuple[str, ...] = ("suite",)
    plain: bool = False
    alone: bool = False


_KINDS = (
    _Kind(
        name="speed",
        make=panels.speed,
        title="Speed-up and acceptance length",
        words="How many times faster than plain decoding at the same batch size, and tokens that a cycle emits for a sequence, the target's own "
        "included. Thin lines are 95 % intervals; the upright lines are plain decoding.",
        apart=("suite", "batch_size"),
    ),
    _Kind(
        name="positions",
        make=panels.positions,
        title="Acceptance by position",
        words="Of the cycles that proposed a token at a position: the share that accepted it, as far as "
        f"{panels.FEWEST_CYCLES} cycles or more did. At the smallest batch size; of several K the largest.",
        alone=True,
    ),
    _Kind(
        name="draft-length",
        make=panels.lengths,
        title="Acceptance length against K",
        words="Tokens that a cycle emits for a sequence, by how many are proposed. At the smallest batch size; upright lines are 95 % intervals.",
        alone=True,
    ),
    _Kind(
        name="time",
        make=panels.times,
        title="Where the time of a cycle goes",
        words="Milliseconds of a cycle, all suites together: in the draft, in the target, and elsewhere.",
        apart=("batch_size",),
        plain=True,
    ),
    _Kind(
        name="throughput",
        make=panels.throughput,
        title="Throughput against latency",
        words="Tokens a second of the whole batch against milliseconds a token of one sequence; numbers are batch sizes. Of several K the fastest.",
        plain=True,
    ),
)


def draw(entries: Sequence[Entry]) -> list[Pictures]:
    """All pictures that there are results for."""
    import matplotlib

    own = [entry for entry in entries if not entry.plain]
    look = looks(list(dict.fromkeys(entry.way for entry in own)), {entry.way for entry in entries if entry.plain})
    smallest: dict[str, int] = {}
    for entry in own:
        smallest[entry.way] = min(smallest.get(entry.way, entry.batch_size), entry.batch_size)
    alone = [entry for entry in own if entry.batch_size == smallest[entry.way]]
    drawn = []
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        for kind in _KINDS:
            found = list(_panels(kind, entries if kind.plain else alone if kind.alone else own, look))
            if found:
                drawn.append(Pictures(title=kind.title, words=kind.words, panels=found))
    return drawn


def _panels(kind: _Kind, entries: Sequence[Entry], look: Mapping[str, Look]) -> Iterator[Panel]:
    groups: dict[tuple[str, int, float], list[Entry]] = {}
    for entry in entries:
        suite, batch_size = entry.suite if "suite" in kind.apart else "", entry.batch_size if "batch_size" in kind.apart else 0
        groups.setdefault((suite, batch_size, entry.temperature), []).append(entry)
    several_batches, several_heats = (len({key[i] for key in groups}) > 1 for i in (1, 2))
    for number, ((suite, batch_size, temperature), some) in enumerate(groups.items(), 1):
        told = (suite, f"batch {batch_size}" if several_batches else "", f"temperature {temperature:g}" if several_heats else "")
        title = ", ".join(filter(None, told))
        figure = kind.make(title, some, look)
        if figure is not None:
            words = re.sub(r"[^\w-]+", "-", title)[:_LONGEST_NAME]
            yield Panel(name=f"{kind.name}-{number}{'-' * bool(words)}{words}", title=title, figure=figure)
