"""How far a number may be trusted: bootstrap intervals."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SAMPLES = 2000


def bootstrap(items: Sequence[Sequence[float]], statistic: Callable[[Array], Array], seed: int = 0) -> list[float] | None:
    """95 % percentile interval of a statistic of sums over resampled items; None for fewer than two items.

    items: [n, c], numbers that belong together, such as the tokens and seconds of a chunk
    statistic: from sums [..., c] to [...]
    """
    return _interval(statistic(_resampled(items, seed))) if len(items) > 1 else None


def bootstrap_difference(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], statistic: Callable[[Array], Array], paired: bool
) -> list[float] | None:
    """95 % percentile interval of how much greater a statistic is of the second items than of the first; None
    where either are fewer than two.

    paired: item i of both is of the same thing, such as a prompt, and both are drawn together; so what makes
        one prompt easier than another does not widen the interval. Else they are drawn apart.
    """
    if min(len(first), len(second)) < 2:
        return None
    return _interval(statistic(_resampled(second, 0 if paired else 1)) - statistic(_resampled(first, 0)))


def _resampled(items: Sequence[Sequence[float]], seed: int) -> Array:
    """Sums [samples, c] over as many items as there are, drawn with replacement."""
    values = np.asarray(items, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(values), (_SAMPLES, len(values)))
    return values[chosen].sum(1)


def _interval(samples: Array) -> list[float]:
    low, high = np.percentile(samples, (2.5, 97.5))
    return [float(low), float(high)]
