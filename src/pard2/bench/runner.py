"""Runs a plan: each chunk by every configuration in turn.

So a machine that changes its speed changes it for all configurations alike.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from pard2.bench.measurement import Measurement
from pard2.bench.memory import watched
from pard2.bench.plan import Chunk, Configuration, Plan
from pard2.bench.progress import TimeLeft, live_table
from pard2.bench.result_file import ResultFile
from pard2.bench.turns import encode_suite
from pard2.engine.capacity import free_bytes, position_bytes
from pard2.engine.engine import Engine
from pard2.engine.methods import EAGLE3, METHODS
from pard2.engine.request import Completion
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.models.any_draft import AnyDraft
from pard2.models.target import Target
from pard2.units import duration

_WARM_UP_TOKENS = 32


class Runner:
    """One engine for each configuration, all on the same models.

    drafts: by the names that configurations have for them; the only one has the name None

    Engines live as long as the run, and so does what `auto` learns.

    Raises `Pard2Error` for prompts, methods or draft lengths that do not fit the models, and for caches that
    do not fit the memory.
    """

    def __init__(self, plan: Plan, target: Target, drafts: Mapping[str | None, AnyDraft]) -> None:
        self.plan = plan
        self._device = target.device
        self._prompts = {suite.name: encode_suite(suite, target, plan.max_new_tokens) for suite in plan.suites}
        longest = max(len(prompt) for prompts in self._prompts.values() for prompt in prompts) + plan.max_new_tokens
        self._caches: dict[Configuration, int] = {}
        self._engines: dict[Configuration, Engine] = {}
        for one in plan.configurations:
            # Room for a whole batch, however the gaps between its members lie.
            positions = (2 * one.batch_size - 1) * longest
            method = METHODS[one.method]
            used = drafts.get(one.draft) if method.needs else None
            self._engines[one] = Engine(
                target,
                used,
                one.method,
                one.draft_tokens or "auto",
                max_batch=one.batch_size,
                cache_tokens=positions,
                tree=one.tree,
                tree_top_k=plan.tree_top_k if one.method == EAGLE3 and one.tree else None,
                cuda_graphs=plan.cuda_graphs,
                **{name: value for name, value in plan.ngrams.items() if method.needs or name != "ngram_first"},
            )
            size = position_bytes(target.config, target.decoder_dtype)
            size += 0 if used is None else position_bytes(used.config, used.decoder_dtype)
            self._caches[one] = positions * size
        free = free_bytes(target.device)
        if self.cache_bytes > free:
            raise Pard2Error(
                f"the caches of {len(plan.configurations)} configurations take {self.cache_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
                "compare fewer at once, or smaller `max_batch`"
            )

    @property
    def cache_bytes(self) -> int:
        return sum(self._caches.values())

    def warm_up(self, announce: Callable[[Configuration], None]) -> float:
        """Let each configuration decode a little, outside the results.

        Returns about how many seconds the plan may take at most.
        """
        prompts = next(iter(self._prompts.values()))
        tokens = min(_WARM_UP_TOKENS, self.plan.max_new_tokens)
        seconds = 0.0
        for one, engine in self._engines.items():
            announce(one)
            texts = [prompts[i % len(prompts)] for i in range(one.batch_size)]
            started = time.perf_counter()
            _complete(engine, texts, [SamplingParams(max_tokens=tokens, temperature=one.temperature, seed=0, ignore_eos=True)] * len(texts))
            seconds += (time.perf_counter() - started) / (len(texts) * tokens)
        return seconds * self.plan.prompts * self.plan.repeats * self.plan.max_new_tokens

    def measure(self, chunk: Chunk, announce: Callable[[Configuration], None]) -> list[Measurement]:
        """Decode a chunk by every configuration of its batch size.

        announce: told which one is next
        """
        prompts = self._prompts[chunk.suite][chunk.first : chunk.first + chunk.count]
        # Every other chunk the other way round, so that nobody always comes first.
        configurations = self.plan.at(chunk.batch_size)
        order = configurations[::-1] if (chunk.first // chunk.count + chunk.repeat) % 2 else configurations
        completions, totals, seconds, peaks = {}, {}, {}, {}
        for one in order:
            announce(one)
            engine = self._engines[one]
            params = [self._params(one, index) for index in range(chunk.first, chunk.first + chunk.count)]
            before = engine.totals
            with watched(self._device) as peak:
                started = time.perf_counter()
                completions[one] = _complete(engine, prompts, params)
                seconds[one] = time.perf_counter() - started
            totals[one] = engine.totals - before
            peaks[one] = None if peak.bytes is None else self._caches[one] + peak.bytes
        return [Measurement.of(one, chunk, completions[one], completions[one.base], totals[one], seconds[one], peaks[one]) for one in configurations]

    def _params(self, configuration: Configuration, index: int) -> SamplingParams:
        """The same numbers for a prompt whatever the configuration, so that all of them say the same."""
        plan = self.plan
        return SamplingParams(
            max_tokens=plan.max_new_tokens, temperature=configuration.temperature, seed=plan.seed + index, ignore_eos=plan.ignore_eos
        )


def run(runner: Runner, file: ResultFile, console: Console) -> None:
    """Measure what the file lacks, chunk by chunk, showing on the console what is known so far."""
    done = file.done
    missing = [chunk for chunk in runner.plan.chunks() if chunk not in done]
    if not missing:
        return
    with live_table(console) as live:
        live.show([], "warming up", None)
        most = runner.warm_up(live.announce)
        console.print(f"at most about {duration(most * len(missing) / (len(missing) + len(done)))}", style="dim")
        left = TimeLeft(missing)
        for number, chunk in enumerate(missing):
            where = f"{chunk.suite}, chunk {number + 1} of {len(missing)}"
            live.show(file.results, where, left.estimate(number))
            measurements = runner.measure(chunk, live.announce)
            left.observe(chunk, sum(one.seconds for one in measurements))
            file.add(measurements)


def _complete(engine: Engine, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> list[Completion]:
    completions = engine.generate(prompts, params)
    for completion in completions:
        if completion.finish_reason == "error":
            raise Pard2Error(f"`method` {engine.method} failed: {completion.error}")
    return completions
