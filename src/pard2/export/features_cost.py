"""What a draft loses where it gets no features of the target, as measured."""

from collections.abc import Iterable, Iterator

from pard2.bench.summary import Result
from pard2.engine.methods import PARD2_TD, PARD2_TI

_SAME = ("suite", "batch_size", "draft_tokens", "tree", "temperature")


def features_cost(results: Iterable[Result]) -> Iterator[str]:
    """A line for each suite where both were measured alike: acceptance lengths with and without."""
    known = {(one["method"], *(one[key] for key in _SAME)): one for one in results if one["acceptance_length"] is not None}
    for (method, *conditions), one in known.items():
        other = known.get((PARD2_TI, *conditions))
        if method == PARD2_TD and other is not None:
            heat = f" at temperature {one['temperature']:g}" if one["temperature"] else ""
            lengths = f"{one['acceptance_length']:.2f} with features (TD), {other['acceptance_length']:.2f} without (TI)"
            yield f"{one['suite']}{heat}: acceptance length {lengths}"
