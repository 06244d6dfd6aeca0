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
    if len(items) < 2:
        return None
    values = np.asarray(items, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(values), (_SAMPLES, len(values)))
    low, high = np.percentile(statistic(values[chosen].sum(1)), (2.5, 97.5))
    return [float(low), float(high)]
