"""Host seconds of a decoding cycle: what the engine's own Python costs, where the
models' work is next to nothing.

    python benchmarks/host_time.py --json docs/results/host_time.json
    python benchmarks/host_time.py --profile pard2-td 32

The models are tiny and random. *Engine alone*: once the prompts have been read, both decoders are replaced by
stubs that return ready tensors, so that planning, proposals, verification and statistics are all that is
left. *With decoders*: the real ones run, whose layout of a batch on the host counts, too, and so does the
little arithmetic. A cycle is one `Engine.step` of a full batch. Batch sizes, methods and decoders take turns,
round by round; figures are medians. The limit is 0.3 ms a cycle and 20 us a sequence. One thread of torch's:
on so little, more only wait.
"""

import argparse
import cProfile
import pstats
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import in_turn
from loads import full_batch
from pard2 import Engine
from pard2.checkpoints.loading import parse_device
from pard2.environment import meta
from pard2.models.draft import Draft, DraftSpec
from pard2.models.target import Target
from pard2.runtime.decoder import DecoderOutput
from random_models import random_model

CYCLE_MILLISECONDS, SEQUENCE_MICROSECONDS = 0.3, 20.0  # the limit
# vocabulary, hidden, intermediate, layers, heads, key-value heads, head_dim
SHAPE = (64, 16, 32, 2, 2, 1, 8)
VOCABULARY, HIDDEN = SHAPE[:2]
FEATURE_LAYERS = (-1, -2)
MOST_DRAFT_TOKENS, ONE_BY_ONE = 8, 4  # of a parallel draft and of `vsd`, each of whose guesses is a pass
PROMPT, WARM_UP = 16, 5  # tokens, and cycles before the timed ones
METHODS = ("ar", "vsd", "pard", "pard2-td")
DECODERS = ("engine alone", "with decoders")
TOP = 25  # functions of a profile


class Stub:
    """Stands in for a decoder: the first rows of ready logits and features, whatever is asked.

    While answers are decoded the target's logits are wanted of every row, so that they
    say how many rows there are.
    """

    def __init__(self, most_rows: int, device: torch.device, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._logits = torch.rand(most_rows, VOCABULARY, generator=generator)
        # Either of two tokens is the largest: half of the proposals stand.
        self._logits[torch.arange(most_rows), torch.randint(2, (most_rows,), generator=generator)] = 5.0
        self._logits = self._logits.to(device)
        self._features = torch.randn(most_rows, len(FEATURE_LAYERS) * HIDDEN, generator=generator).to(device)

    def run(self, batch: object, *given: Any, **named: Any) -> DecoderOutput:
        given = (*given, *named.values())
        rows = next((len(one) for one in reversed(given) if isinstance(one, Tensor)), 0)
        wanted = any(isinstance(one, tuple) and one for one in given)  # layers
        return DecoderOutput(self._logits[:rows], self._features[:rows] if wanted else None)


def new_engine(method: str, batch: int, draft_tokens: int | str, device: torch.device, cycles: int) -> Engine:
    """An engine of models of its own, with room for `batch` sequences that decode so many cycles."""
    torch.manual_seed(0)
    target = Target(random_model(SHAPE, 8192, torch.float32, device), name="tiny")
    draft = None
    if method != "ar":
        lm = random_model(SHAPE, 8192, torch.float32, device)
        dependent = method == "pard2-td"
        layers, width = (FEATURE_LAYERS, len(FEATURE_LAYERS) * HIDDEN) if dependent else (None, None)
        spec = DraftSpec(mask_token=VOCABULARY - 1, draft_tokens=MOST_DRAFT_TOKENS, target_layers=layers, target_dim=width)
        projection = nn.Linear(width, HIDDEN, bias=False, device=device) if width else None
        draft = Draft(lm, None if method == "vsd" else spec, projection, name="tiny draft").eval().requires_grad_(False)
    k = ONE_BY_ONE if method == "vsd" and draft_tokens != "auto" else draft_tokens
    room = PROMPT + answer_tokens(batch, cycles) + MOST_DRAFT_TOKENS
    return Engine(target, draft, method=method, draft_tokens=k, max_batch=batch, cache_tokens=batch * room)


def answer_tokens(batch: int, cycles: int) -> int:
    """New tokens with which no sequence ends before its last cycle is timed, nor
    while the prompts are read."""
    reading = 2 + batch * PROMPT // 256
    return (reading + WARM_UP + cycles) * (MOST_DRAFT_TOKENS + 1) + 1


@contextmanager
def stubs(engine: Engine, batch: int) -> Iterator[None]:
    """Within, both decoders are stubs."""
    models = [model for model in (engine.target, engine.draft) if model is not None]
    real = [model.decoder for model in models]
    for number, model in enumerate(models):
        model.decoder = Stub(batch * (2 * MOST_DRAFT_TOKENS + 1), engine.target.device, number)
    try:
        yield
    finally:
        for model, decoder in zip(models, real, strict=True):
            model.decoder = decoder


@dataclass(frozen=True)
class Load:
    """A full batch of endless answers. cycles: timed ones, each time."""

    engine: Engine
    batch: int
    stubbed: bool
    cycles: int

    def milliseconds(self) -> float:
        """Of a cycle, the median."""
        with self.decoding():
            return 1000 * median(self.step() for _ in range(self.cycles))

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Within, every sequence decodes, by stubs where it shall."""
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(VOCABULARY - 1, (self.batch, PROMPT), generator=generator).tolist()
        with (
            full_batch(self.engine, prompts, answer_tokens(self.batch, self.cycles)),
            stubs(self.engine, self.batch) if self.stubbed else nullcontext(),
        ):
            for _ in range(WARM_UP):
                self.engine.step()
            yield

    def step(self) -> float:
        """Seconds of one cycle. When it returns, the device has done whatever decides the tokens."""
        started = time.perf_counter()
        self.engine.step()
        return time.perf_counter() - started


def limit(batch: int) -> float:
    """Milliseconds that a cycle may take."""
    return CYCLE_MILLISECONDS + batch * SEQUENCE_MICROSECONDS / 1000


def fit(batches: Sequence[int], milliseconds: Sequence[float]) -> dict[str, float]:
    """The line through the figures, each with the same weight by its relative error."""
    if len(set(batches)) < 2:
        return {}
    slope, start = np.polyfit(batches, milliseconds, 1, w=1 / np.asarray(milliseconds))
    return {"milliseconds_a_cycle": float(start), "microseconds_a_sequence": 1000 * float(slope)}


def profile(load: Load) -> None:
    """Print the functions that take most of the time themselves."""
    profiler = cProfile.Profile()
    with load.decoding():
        profiler.enable()
        for _ in range(load.cycles):
            load.engine.step()
        profiler.disable()
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(TOP)


def measure(loads: dict[tuple[str, str, int], Load], rounds: int) -> list[dict[str, Any]]:
    taken = in_turn({key: load.milliseconds for key, load in loads.items()}, rounds)
    results = []
    for (method, decoders, batch), rounds_taken in taken.items():
        one = {"method": method, "decoders": decoders, "batch_size": batch, "milliseconds": median(rounds_taken)}
        one |= {"microseconds_a_sequence": 1000 * one["milliseconds"] / batch, "limit_milliseconds": limit(batch)}
        results.append(one | {"within_limit": one["milliseconds"] <= one["limit_milliseconds"], "all": rounds_taken})
    return results


def fits(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for method, decoders in dict.fromkeys((one["method"], one["decoders"]) for one in results):
        some = [one for one in results if (one["method"], one["decoders"]) == (method, decoders)]
        line = fit([one["batch_size"] for one in some], [one["milliseconds"] for one in some])
        found.append({"method": method, "decoders": decoders} | line)
    return found


def print_results(results: list[dict[str, Any]], lines: list[dict[str, Any]]) -> None:
    print("| method | decoders | batch | ms a cycle | us a sequence | limit, ms | within |\n| --- | --- | --- | --- | --- | --- | --- |")
    for one in results:
        figures = f"{one['milliseconds']:.3f} | {one['microseconds_a_sequence']:.1f} | {one['limit_milliseconds']:.2f}"
        print(f"| {one['method']} | {one['decoders']} | {one['batch_size']} | {figures} | {'yes' if one['within_limit'] else 'NO'} |")
    for line in lines:
        if "milliseconds_a_cycle" in line:
            print("{method}, {decoders}: {milliseconds_a_cycle:.3f} ms + {microseconds_a_sequence:.1f} us a sequence".format(**line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument("--draft-tokens", choices=["full", "auto"], default="full", help=f"full: {MOST_DRAFT_TOKENS}, and {ONE_BY_ONE} of vsd")
    parser.add_argument("--cycles", type=int, default=40, help="timed in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", nargs=2, metavar=("METHOD", "BATCH"), help="print the top functions of one case instead")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device, about = parse_device(args.device), meta()
    if args.profile:
        method, batch = args.profile[0], int(args.profile[1])
        for decoders in args.decoders:
            print(f"{method}, batch {batch}, {decoders}, {args.cycles} cycles")
            engine = new_engine(method, batch, args.draft_tokens, device, args.cycles)
            profile(Load(engine, batch, decoders == DECODERS[0], args.cycles))
        return
    loads = {}
    for method in args.methods:
        for batch in args.batch_sizes:
            engine = new_engine(method, batch, args.draft_tokens, device, args.cycles)
            loads |= {(method, kind, batch): Load(engine, batch, kind == DECODERS[0], args.cycles) for kind in args.decoders}
    results = measure(loads, args.rounds)
    lines = fits(results)
    print_results(results, lines)
    if args.json:
        from pard2.bench.result_file import write_result

        limits = {"milliseconds_a_cycle": CYCLE_MILLISECONDS, "microseconds_a_sequence": SEQUENCE_MICROSECONDS}
        write_result(args.json, about, results, limit=limits, fits=lines, draft_tokens=args.draft_tokens)


if __name__ == "__main__":
    main()
