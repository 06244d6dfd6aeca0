"""The rule by which draft lengths are chosen, in its plainest form: every possible choice is tried.

The lengths of a batch are the numbers of tokens K that each of its sequences proposes. Chosen are those with
the most expected tokens per second of the whole batch (docs/draft_length.md). `vectorised` finds them fast;
tests compare the two.
"""

from collections.abc import Callable, Sequence
from itertools import product

Cost = Callable[[float], float]  # seconds of a model's pass by its number of rows

# Proposals must promise so many times the speed of plain decoding: they cost a little outside the models,
# too, and measured times are noisy.
WORTHWHILE = 1.015


def expected_tokens(lengths: Sequence[int], chances: Sequence[Sequence[float]]) -> float:
    """Tokens that a cycle emits: one of the target's own for each sequence, and those accepted.

    chances: `Acceptance.chances` of each sequence
    """
    return len(lengths) + sum(sum(chance[:k]) for k, chance in zip(lengths, chances, strict=True))


def expected_seconds(lengths: Sequence[int], backlog: Sequence[float], draft: Cost, target: Cost, sequential: bool) -> float:
    """Seconds of a cycle's passes.

    backlog: tokens of each sequence that the draft has not read; it reads them when it proposes
    draft, target: seconds of their passes
    sequential: the draft runs once for each further token; a parallel one runs once for all
    """
    seconds = target(len(lengths) + sum(lengths))
    if not any(lengths):
        return seconds
    return seconds + sum(map(draft, draft_passes(lengths, backlog, sequential)))


def draft_passes(lengths: Sequence[int], backlog: Sequence[float], sequential: bool) -> list[float]:
    """Rows of each of the draft's passes in a cycle in which something is proposed.

    Arguments as of `expected_seconds`. A parallel draft has a row for each guess but the first, which stands
    at the last token that it reads; a sequential one runs again for each further guess.
    """
    reading = sum(unread for k, unread in zip(lengths, backlog, strict=True) if k)
    if not sequential:
        return [reading + sum(k - 1 for k in lengths if k)]
    # Sequences that take part in each further pass of the draft.
    return [reading, *(sum(k > depth for k in lengths) for depth in range(1, max(lengths)))]


def best_lengths(
    chances: Sequence[Sequence[float]],
    limits: Sequence[int],
    backlog: Sequence[float],
    draft: Cost,
    target: Cost,
    sequential: bool,
) -> list[int]:
    """The lengths with the most expected tokens per second; all 0 where proposals are not worthwhile.

    limits: the greatest length of each sequence
    other arguments: as of `expected_tokens` and `expected_seconds`
    """

    def speed(lengths: Sequence[int]) -> float:
        return expected_tokens(lengths, chances) / expected_seconds(lengths, backlog, draft, target, sequential)

    nothing = [0] * len(limits)
    best = max(product(*(range(limit + 1) for limit in limits)), key=speed)
    return list(best) if speed(best) > WORTHWHILE * speed(nothing) else nothing
