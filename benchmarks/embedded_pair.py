"""Acceptance length, speed-up and cycle overhead of the embedded pair, by suite and method.

    python benchmarks/embedded_pair.py --suites ../shared/data/eval_gsm8k.jsonl ../shared/data/eval_humaneval.jsonl \
        --prompts 20 --json docs/results/embedded_pair.json

Every prompt is decoded by all methods in turn before the next one, so that a change of the machine's
speed hits all of them. The base is plain decoding in the same engine at the same precision.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from common import bootstrap, meta, write_result
from pard2.data.records import read_records, up_to_user
from pard2.engine.engine import Completion, Engine, SamplingParams
from pard2.engine.statistics import Stats
from pard2.models.embedded import embedded_draft

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=None, help="by default the embedded one")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--draft-tokens", nargs="+", default=["auto"], help="one or more of K and auto")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()

    console = Console(stderr=True)
    first = Engine.from_pretrained(args.target, args.draft or embedded_draft(), "pard2-td", args.dtype)
    engines = {("ar", "0"): Engine(first.target, None, "ar")}
    for method in ("pard2-ti", "pard2-td"):
        for k in args.draft_tokens:
            engines[method, k] = Engine(first.target, first.draft, method, k if k == "auto" else int(k))
    params = SamplingParams(max_tokens=args.new_tokens)
    results = []
    for suite in args.suites:
        records = read_records(suite)[: args.prompts]
        prompts = [up_to_user(record) for record in records]
        for engine in engines.values():
            list(engine.generate(prompts[:WARM_UP], SamplingParams(max_tokens=32)))
        done: dict[tuple[str, str], list[Completion]] = {key: [] for key in engines}
        for prompt in track(prompts, description=suite.stem, console=console):
            for key, engine in engines.items():
                done[key].extend(engine.generate([prompt], params))
        results += [_result(suite.stem.removeprefix("eval_"), key, done) for key in engines]
        write_result(args.json, about, results)
        _show(console, results)


def _result(suite: str, key: tuple[str, str], done: dict[tuple[str, str], list[Completion]]) -> dict:
    ours, base = done[key], done["ar", "0"]
    pairs = list(zip([c.stats for c in ours], [c.stats for c in base], strict=True))
    stats = sum((s for s, _ in pairs), Stats())
    return {
        "suite": suite,
        "method": key[0],
        "batch_size": 1,
        "draft_tokens": key[1] if key[1] == "auto" else int(key[1]),
        "temperature": 0,
        "prompts": len(ours),
        "tokens": sum(len(c.token_ids) for c in ours),
        "tokens_per_second": round(stats.tokens_per_second, 3),
        "speedup": round(_speedup(pairs), 4),
        "speedup_interval": bootstrap(pairs, _speedup),
        "acceptance_length": round(stats.acceptance_length, 4),
        "acceptance_length_interval": bootstrap(pairs, lambda chosen: _acceptance(chosen)),
        "accepted_by_position": [round(rate, 4) for rate in stats.accepted_by_position],
        "draft_seconds": round(stats.draft_seconds, 3),
        "verify_seconds": round(stats.verify_seconds, 3),
        "other_seconds": round(stats.other_seconds, 3),
        "other_share": round(stats.other_seconds / stats.decode_seconds, 4),
        "equal_outputs": sum(a.token_ids == b.token_ids for a, b in zip(ours, base, strict=True)),
    }


def _speedup(pairs: list[tuple[Stats, Stats]]) -> float:
    ours, base = (sum((pair[i] for pair in pairs), Stats()) for i in (0, 1))
    return ours.tokens_per_second / base.tokens_per_second


def _acceptance(pairs: list[tuple[Stats, Stats]]) -> float:
    cycles = sum(ours.cycles for ours, _ in pairs)
    return 1 + sum(ours.accepted for ours, _ in pairs) / max(1, cycles)


def _show(console: Console, results: list[dict]) -> None:
    table = Table("suite", "method", "K", "tokens/s", "speed-up", "95 %", "AL", "95 %", "other", "same text")
    for r in results:
        intervals = ["{:.2f} to {:.2f}".format(*r[f"{name}_interval"]) for name in ("speedup", "acceptance_length")]
        table.add_row(
            r["suite"], r["method"], str(r["draft_tokens"]), f"{r['tokens_per_second']:.1f}", f"{r['speedup']:.2f}x", intervals[0],
            f"{r['acceptance_length']:.2f}", intervals[1], f"{r['other_share']:.1%}", f"{r['equal_outputs']}/{r['prompts']}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
