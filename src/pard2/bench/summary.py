"""From measurements to the numbers that are reported, with their intervals."""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from statistics import median
from typing import Any

import numpy as np

from pard2.bench.measurement import Answer, Measurement
from pard2.bench.plan import Chunk, Configuration
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
    answers = answers_by_prompt(ours)
    pairs, counts = list(tokens_and_seconds(ours, base).values()), list(accepted_and_cycles(ours).values())
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
        "tokens_per_second": rounded(totals.tokens_per_second),
        "speedup": rounded(of_sums(pairs, speedup)),
        "speedup_interval": rounded(bootstrap(pairs, speedup)),
        "speedup_median": rounded(median(a / s / (b / t) for a, s, b, t in pairs) if pairs else None),
        "acceptance_length": rounded(of_sums(counts, acceptance_length)),
        "acceptance_length_interval": rounded(bootstrap(counts, acceptance_length)),
        "accepted_by_position": rounded(_by_position(ours)),
        "draft_seconds": rounded(totals.draft_seconds),
        "verify_seconds": rounded(totals.verify_seconds),
        "other_seconds": rounded(totals.other_seconds),
        "other_share": rounded(totals.other_seconds / totals.decode_seconds if totals.decode_seconds else None),
        "prefill_seconds": rounded(totals.prefill_seconds),
        "peak_bytes": max(peaks, default=None),
        "cycles": totals.cycles,
        "chunks": len(ours),
        "equal_outputs": sum(all(a.equal for a in tries) for tries in answers.values()),
    }


def answers_by_prompt(measurements: Iterable[Measurement]) -> dict[int, list[Answer]]:
    """Of each prompt of a suite, by its number, the answers of every repeat."""
    answers: dict[int, list[Answer]] = {}
    for one in measurements:
        for index, answer in enumerate(one.answers, one.chunk.first):
            answers.setdefault(index, []).append(answer)
    return answers


def accepted_and_cycles(measurements: Iterable[Measurement]) -> dict[int, tuple[float, ...]]:
    """What `acceptance_length` takes the sums of, by prompt; nothing of answers that have no cycle."""
    counts = {index: (sum(a.accepted for a in tries), sum(a.cycles for a in tries)) for index, tries in answers_by_prompt(measurements).items()}
    return {index: count for index, count in counts.items() if count[1]}


def tokens_and_seconds(ours: Sequence[Measurement], base: Sequence[Measurement]) -> dict[Chunk, tuple[float, ...]]:
    """What `speedup` takes the sums of, by chunk; nothing of answers of one token, which have no cycles.

    ours, base: of the same chunks, in the same order
    """
    found = {a.chunk: (a.totals.tokens, a.totals.decode_seconds, b.totals.tokens, b.totals.decode_seconds) for a, b in zip(ours, base, strict=True)}
    return {chunk: pair for chunk, pair in found.items() if pair[1] and pair[3]}


def speedup(sums: Array) -> Array:
    """sums: [.., 4], our tokens and seconds, and those of plain decoding"""
    ours, seconds, base, base_seconds = np.moveaxis(sums, -1, 0)
    return (ours / seconds) / (base / base_seconds)


def acceptance_length(sums: Array) -> Array:
    """METHOD: section 1.

    sums: [.., 2], accepted tokens and cycles
    """
    accepted, cycles = np.moveaxis(sums, -1, 0)
    return 1 + accepted / cycles


def of_sums(items: Sequence[Sequence[float]], statistic: Callable[[Array], Array]) -> float | None:
    return float(statistic(np.asarray(items, dtype=np.float64).sum(0))) if items else None


def _by_position(measurements: list[Measurement]) -> list[float]:
    """Of the cycles that proposed a token at a position, the share that accepted it."""
    proposed = [sum(column) for column in zip_longest(*(one.proposed_at for one in measurements), fillvalue=0)]
    accepted = [sum(column) for column in zip_longest(*(one.accepted_at for one in measurements), fillvalue=0)]
    return [a / p for a, p in zip(accepted, proposed, strict=True)]


def rounded(value: Any) -> Any:
    """To six digits, which is more than any measurement has."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return None if value is None else float(f"{value:.6g}")
