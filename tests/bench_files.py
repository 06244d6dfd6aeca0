"""Result files of `pard2 bench`, made by hand."""

from pathlib import Path
from typing import Any

import pytest

from pard2.bench import result_file
from pard2.bench.measurement import Answer, Measurement
from pard2.bench.plan import Chunk, Configuration, Plan, configurations
from pard2.bench.result_file import ResultFile
from pard2.bench.suites import Suite
from pard2.engine.statistics import Totals

META = {
    "argv": ["pard2", "bench", "-t", "/home/me/target", "-d", "new=/home/me/runs/best", "-s", "/data/it's.jsonl,gsm8k", "--json", "/tmp/r.json"],
    "commit": "abc1234",
    "versions": {"python": "3.11.7", "pard2": "0.1.0", "torch": "2.11.0"},
    "hardware": {"cpu": "Intel Xeon", "features": ["avx2", "amx_bf16"], "cores": 2, "threads": 1, "gpu": None},
    "date": "2026-11-28T10:00:00+00:00",
}


def write_results(
    path: Path,
    draft: Any,
    identity: Any,
    methods: Any = ("pard2-ti", "pard2-td"),
    suites: tuple[str, ...] = ("gsm8k",),
    **more: Any,
) -> Path:
    """Four prompts a suite of 10 tokens: 0.5 s by the methods; by plain decoding more, and never the same.

    methods: of the draft, or by the names of several.
    more: lists for `configurations`; "plan": further fields of it.
    """
    fields = more.pop("plan", {})
    lists = {"batch_sizes": (1,), "draft_tokens": (4,), "temperatures": (0.0,)} | more
    plan = Plan(
        target="org/target",
        draft=draft,
        dtype="bfloat16",
        device="cpu",
        suites=tuple(Suite(name, ("0", "1", "2", "3"), ([{"role": "user", "content": "ask"}],) * 4) for name in suites),
        configurations=configurations(methods, **lists),
        max_new_tokens=128,
        draft_identity=identity,
        **fields,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result_file, "meta", lambda: META)
        file = ResultFile(path, plan)
    for chunk in plan.chunks():
        file.add(_measured(one, chunk) for one in plan.at(chunk.batch_size))
    return path


def _measured(one: Configuration, chunk: Chunk) -> Measurement:
    plain = one.method == "ar"
    cycles, seconds = (10, (1.0 + chunk.batch_size + (chunk.suite != "gsm8k") + 2 * one.temperature)) if plain else (5, 0.5)
    accepted = 0 if plain else 3 + chunk.first
    totals = Totals(cycles=cycles, tokens=10, prefill_seconds=0.1, decode_seconds=seconds, draft_seconds=seconds / 4, verify_seconds=seconds / 2)
    equal = plain or one.method != "pard2-td" or chunk.first > 0
    return Measurement(
        configuration=one,
        chunk=chunk,
        totals=totals,
        answers=(Answer(11, cycles, accepted, equal),) * chunk.count,
        proposed_at=() if plain else (5, 5, 4),
        accepted_at=() if plain else (4, 2, 1),
        seconds=seconds,
    )
