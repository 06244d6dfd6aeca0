"""How far a draft has read one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pard2.engine.ngrams import NgramIndex
from pard2.runtime.kv_cache import CacheRegion


@dataclass(kw_only=True)
class DraftState:
    """How far the draft has read one sequence.

    region: its part of the draft's cache; None for a drafter without one.
    num_computed_tokens: places of it that hold tokens known to be in the text.
    num_guessed_tokens: places behind them that hold the draft's own guesses.
    pending: tokens that it has yet to read.
    features: theirs, chunk by chunk, as rows of matrices that other sequences may share: for each token the
        target's at the position before it.
    last_feature: [1, F], of the prompt's latest token that the draft was told of.
    closed: the text has outgrown the draft, which reads no further.
    ngrams: the text so far, for a drafter that copies from it.
    """

    region: CacheRegion | None = None
    num_computed_tokens: int = 0
    num_guessed_tokens: int = 0
    pending: list[int] = field(default_factory=list)
    features: list[tuple[Tensor, Sequence[int]]] = field(default_factory=list)
    last_feature: Tensor | None = None
    closed: bool = False
    ngrams: NgramIndex | None = None
