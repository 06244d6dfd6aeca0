"""From measurements to the numbers that are reported, with their intervals."""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from statistics import median
from typing import Any

import numpy as np

from pard2.bench.measurement import Answer, Measurement
from pard2.bench.plan import Configuration
from pard2.engine.statistics import Totals
from pard2.intervals import Array, bootstrap

Result = dict[str, Any]


def summarise(suites: Iterable[str], configurations: Sequence[Configuration], measurements: Sequence[Measurement]) -> list[Result]:
    """One result for each suite and configuration measured so far, in their order and in the shape that
    docs/bench.md describes.

    suites: their names
    """
    results: list[Result] = []
    several = any(configuration.draft is not None for configuration in configurations)
    for suite in suites:
        found: dict[Configuration, list[Measurement]] = {}
        for measured in measurements:
            if measured.chunk.suite == suite:
                found.setdefault(measured.configuration, []).append(measured)
        for one in configurations:
            if one in found:
                results.append(_result(suite, {"draft": one.draft} if several else {}, found[one], found[one.base]))
    return results


def _result(suite: str, draft: dict[str, Any], ours: list[Measurement], base: list[Measurement]) -> Result:
    """draft: nothing, or its key. ours, base: measurements of the same chunks, in the same order"""
    configuration = ours[0].configuration
    totals = sum((one.totals for one in ours), Totals())
    # (our tokens, our seconds, plain tokens, plain seconds) of each chunk
    pairs = [(a.totals.tokens, a.totals.decode_seconds, b.totals.tokens, b.totals.decode_seconds) for a, b in zip(ours, base, strict=True)]
    pairs = [pair for pair in pairs if pair[1] and pair[3]]  # answers of one token have no cycles
    answers: dict[int, list[Answer]] = {}  # by prompt, of every repeat
    for one in ours:
        for index, answer in enumerate(one.answers, one.chunk.first):
            answers.setdefault(index, []).append(answer)
    counts = [(sum(a.accepted for a in tries), sum(a.cycles for a in tries)) for tries in answers.values()]
    counts = [count for count in counts if count[1]]
    peaks = [one.peak_bytes for one in ours if one.peak_bytes is not None]
    return {
        "suite": suite,
        **draft,
        "method": configuration.method,
        "batch_size": configuration.batch_size,
        "draft_tokens": configuration.draft_tokens,
        "tree": configuration.tree,
        "temperature": configuration.temperature,
        "prompts": len(answers),
        "answers": sum(len(tries) for tries in answers.values()),
        "tokens": sum(a.tokens for tries in answers.values() for a in tries),
        "tokens_per_second": _rounded(totals.tokens_per_second),
        "speedup": _rounded(_of_sums(pairs, _speedup)),
        "speedup_interval": _rounded(bootstrap(pairs, _speedup)),
        "speedup_median": _rounded(median(a / s / (b / t) for a, s, b, t in pairs) if pairs else None),
        "acceptance_length": _rounded(_of_sums(counts, _acceptance_length)),
        "acceptance_length_interval": _rounded(bootstrap(counts, _acceptance_length)),
        "accepted_by_position": _rounded(_by_position(ours)),
        "draft_seconds": _rounded(totals.draft_seconds),
        "verify_seconds": _rounded(totals.verify_seconds),
        "other_seconds": _rounded(totals.other_seconds),
        "other_share": _rounded(totals.other_seconds / totals.decode_seconds if totals.decode_seconds else None),
        "prefill_seconds": _rounded(totals.prefill_seconds),
        "peak_bytes": max(peaks, default=None),
        "cycles": totals.cycles,
        "chunks": len(ours),
        "equal_outputs": sum(all(a.equal for a in tries) for tries in answers.values()),
    }


def _speedup(sums: Array) -> Array:
    ours, seconds, base, base_seconds = sums.T
    return (ours / seconds) / (base / base_seconds)


def _acceptance_length(sums: Array) -> Array:
    """METHOD: section 1.

    sums: accepted tokens and cycles
    """
    accepted, cycles = sums.T
    return 1 + accepted / cycles


def _of_sums(items: Sequence[Sequence[float]], statistic: Callable[[Array], Array]) -> float | None:
    return float(statistic(np.asarray(items, dtype=np.float64).sum(0))) if items else None


def _by_position(measurements: list[Measurement]) -> list[float]:
    """Of the cycles that proposed a token at a position, the share that accepted it."""
    proposed = [sum(column) for column in zip_longest(*(one.proposed_at for one in measurements), fillvalue=0)]
    accepted = [sum(column) for column in zip_longest(*(one.accepted_at for one in measurements), fillvalue=0)]
    return [a / p for a, p in zip(accepted, proposed, strict=True)]


def _rounded(value: Any) -> Any:
    """To six digits, which is more than any measurement has."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return None if value is None else float(f"{value:.6g}")
