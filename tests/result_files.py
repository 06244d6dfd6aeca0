"""Result files with figures made by hand, for the tests of reports and comparisons."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pard2.bench.measurement import Answer, Measurement
from pard2.bench.plan import Chunk, Configuration, Plan, configurations
from pard2.bench.result_file import ResultFile
from pard2.bench.suites import Suite
from pard2.engine.statistics import Totals

CYCLES = 100  # of every answer that is not the base's
ACCEPTED = {"ar": 0, "pard2-ti": 100, "pard2-td": 150, "eagle3": 120, "ngram": 20}  # by these cycles, so AL is 1 + a hundredth


def accepted(one: Configuration, prompt: int) -> int:
    return ACCEPTED[one.method] + 2 * prompt


def seconds(one: Configuration, prompt: int) -> float:
    """Of an answer; plain decoding takes 2 s for 100 tokens."""
    return 2.0 if one.method == "ar" else 1.0


def suite(name: str, prompts: int = 4, words: str = "ask") -> Suite:
    return Suite(name, tuple(map(str, range(prompts))), tuple([{"role": "user", "content": f"{words} {i}"}] for i in range(prompts)))


def write_results(
    path: Path,
    suites: Sequence[Suite] = (suite("gsm8k"), suite("humaneval")),
    methods: Sequence[str] | Mapping[str | None, Sequence[str]] = ("pard2-ti", "pard2-td"),
    under: Mapping[str, Sequence] | None = None,
    accepted: Callable[[Configuration, int], int] = accepted,
    seconds: Callable[[Configuration, int], float] = seconds,
    unfinished: int = 0,
) -> Path:
    """A file of what `ar` and these methods did.

    under: lists of batch sizes `sizes`, `ks`, temperatures `heats` and `trees`, where there is more than one
    accepted, seconds: of a configuration and the number of a prompt
    unfinished: chunks that are not measured
    """
    lists = {"sizes": (1,), "ks": ("auto",), "heats": (0.0,), "trees": (0,)} | dict(under or {})
    found = configurations(methods, lists["sizes"], lists["ks"], lists["heats"], lists["trees"])
    draft = {name: f"path/{name}" for name in methods} if isinstance(methods, Mapping) else "draft"
    plan = Plan(target="target", draft=draft, dtype="float32", device="cpu", suites=tuple(suites), configurations=found, max_new_tokens=101)
    file = ResultFile(path, plan, replace=True)
    chunks = list(plan.chunks())
    for chunk in chunks[: len(chunks) - unfinished]:
        file.add([_measured(one, chunk, accepted, seconds) for one in plan.at(chunk.batch_size)])
    return path


def _measured(one: Configuration, chunk: Chunk, accepted: Callable, seconds: Callable) -> Measurement:
    """A quarter of the time is the draft's, half the target's; half of the cycles accept the first token, a
    quarter the second.
    """
    prompts = range(chunk.first, chunk.first + chunk.count)
    taken = sum(seconds(one, prompt) for prompt in prompts)
    cycles = CYCLES * chunk.count
    return Measurement(
        configuration=one,
        chunk=chunk,
        totals=Totals(
            cycles=cycles, tokens=100 * chunk.count, prefill_seconds=0.1, decode_seconds=taken, draft_seconds=taken / 4, verify_seconds=taken / 2
        ),
        answers=tuple(Answer(101, CYCLES, accepted(one, prompt), one.method != "pard2-ti" or prompt > 0) for prompt in prompts),
        proposed_at=() if one.method == "ar" else (cycles, cycles, 3),
        accepted_at=() if one.method == "ar" else (cycles // 2, cycles // 4, 3),
        seconds=taken,
        peak_bytes=None,
    )


def changed(path: Path, change: Callable[[dict], object]) -> Path:
    """The same file with a change in its JSON."""
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))
    return path
