"""The training loop, in one process or in several that share out the packed sequences of each step.

Every step is a function of (config, step number, weights), so a killed run resumes where its last
checkpoint stands and ends with the same weights as one that was never killed.
"""

import math
import resource
import shutil
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from pard2.checkpoints.read import load_draft
from pard2.config import TrainConfig
from pard2.data.features import DocumentStates, joined, online_states
from pard2.errors import Pard2Error
from pard2.files import claim, whole_directory
from pard2.models.target import Target
from pard2.train.allocator import keep_freed_memory
from pard2.train.curve import draw_curve
from pard2.train.evaluate import check_evaluation, evaluate, evaluation_target
from pard2.train.initial import read_layers
from pard2.train.metrics import MetricsLog, step_figures, totals
from pard2.train.optimizer import learning_rate
from pard2.train.packed_sequences import DROPOUT, PackedSequence, generator
from pard2.train.plausibility import implausible
from pard2.train.preparation import PreparedRun, prepare_run
from pard2.train.processes import Processes
from pard2.train.progress import TrainingProgress
from pard2.train.run_checkpoint import check_output, save_checkpoint
from pard2.train.run_log import RunLog
from pard2.train.stopping import Stopped, StopSignals
from pard2.train.teacher import trained_slots, with_choices

_MAX_BAD_STEPS = 5

# A packed sequence, and what the cache holds of its documents; None without a cache.
Fetched = tuple[PackedSequence, list[DocumentStates | None] | None]


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Run or resume a training run; returns the directory of the finished draft.

    Raises `Pard2Error` for data without a token to predict, an output that cannot be written or holds
    something else, another run included, or a loss that stays not finite; the last good checkpoint is kept.
    Raises `Stopped` once a checkpoint is written after Ctrl-C, SIGTERM or SIGHUP.
    """
    console = console or Console(stderr=True)
    output = Path(config.loop.output)
    processes = Processes(config.loop.device, config.loop.sharding)
    if processes.device.type == "cpu":
        keep_freed_memory()
    if processes.is_main:
        check_output(config)
    check_evaluation(config)
    with processes.together(), claim(output) if processes.is_main else nullcontext(), RunLog(console, processes.is_main) as log:
        if config.loop.rows_per_step % processes.count:
            raise Pard2Error(f"loop.rows_per_step={config.loop.rows_per_step} cannot be shared out evenly among {processes.count} processes")
        TrainingLoop(prepare_run(config, processes, log), log).steps()
    return output / "draft"


@dataclass
class _Seconds:
    """Of a step: waiting for data, and for the target's states."""

    wait: float = 0.0
    target: float = 0.0


class TrainingLoop:
    """The steps of one run."""

    def __init__(self, run: PreparedRun, log: RunLog) -> None:
        self.run, self.log = run, log
        self.config, self.processes, self.learner, self.progress = run.config, run.processes, run.learner, run.progress
        self.output = Path(run.config.loop.output)
        self._stop, self._stop_asked = StopSignals(log.print), False
        self._ahead: Future[Fetched] | None = None

    # --- steps ------------------------------------------------------------------------------------

    def steps(self) -> None:
        """Take the steps that are left, and leave the finished draft.

        Raises `Stopped` after a step in which a signal came, unless it was the last.
        """
        loop, is_main, progress = self.config.loop, self.processes.is_main, self.progress
        log = self.config.log
        metrics = MetricsLog(self.output, log.tensorboard, log.wandb, self.config.model_dump(mode="json")) if is_main else None
        self.log.open(self.output / "train.log")
        bar = TrainingProgress(self.log, loop.steps, progress.done)
        with metrics or nullcontext(), bar, self.run.cache or nullcontext(), ThreadPoolExecutor(1) as executor, self._stop:
            if metrics is not None:
                metrics.forget_after(progress.done)
            self._executor = executor
            for step in range(progress.done, loop.steps):
                bar.doing(f"step {step + 1:,}")
                record = self.step(step)
                progress.done = step + 1
                last = progress.done == loop.steps
                due = self.config.data.evaluation is not None and (progress.done % loop.evaluate_every == 0 or last)
                if due and (last or not self._stopping()):  # whoever stops a run may not wait for an evaluation
                    bar.doing("evaluating")
                    record["evaluation"] = self.evaluate(record)
                if metrics is not None:
                    metrics.write(record)
                bar.update(record)
                stopping = self._stopping() and not last
                saved = progress.done % loop.save_every == 0 or last or stopping
                if saved:
                    bar.doing("writing a checkpoint")
                    self.save_checkpoint()
                if is_main and (saved or "evaluation" in record):
                    draw_curve(self.output)
                if stopping:
                    # The main process has written the checkpoint by then: a launcher ends all when one ends.
                    self.processes.from_main(progress.done)
                    raise Stopped(self._stop.caught or signal.SIGTERM, progress.done)
        self.save_draft()

    def _stopping(self) -> bool:
        """Whether a signal has come to this process or, up to the end of the last step, to another."""
        return self._stop_asked or (self.processes.count == 1 and self._stop.caught > 0)

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step over the global batch; returns its metrics."""
        began, seconds = time.perf_counter(), _Seconds()
        loop, count, k = self.config.loop, self.processes.count, self.config.objective.draft_tokens
        first = step * loop.rows_per_step + self.processes.rank
        numbers = [*range(first, (step + 1) * loop.rows_per_step, count)]
        # As `step_figures` takes them, and at last whether to stop.
        sums = torch.zeros(7 + 4 * k, dtype=torch.float64, device=self.processes.device)
        for number in numbers:
            last = number == numbers[-1]
            sums[:-1] += self._pass(step, number, first + loop.rows_per_step if last else number + count, last, seconds)
        sums[-1] = self._stop.caught
        self.processes.sum(sums)
        self._stop_asked = bool(sums[-1] > 0)
        norm = self._update(step, sums)
        figures = step_figures(sums.tolist(), k, self.config.asks_target)
        elapsed = time.perf_counter() - began
        return {
            "step": step + 1,
            **figures,
            "lr": learning_rate(step, loop.steps, self.config.optimizer),
            "gradient_norm": round(norm, 4),
            "skipped_steps": self.progress.skipped,
            "seconds": round(elapsed, 3),
            "wait_seconds": round(seconds.wait, 3),
            "target_seconds": round(seconds.target, 3),
            "slots_per_second": round(figures["slots"] / elapsed, 1),
            "memory_bytes": _peak_memory(self.processes.device),
        }

    def _pass(self, step: int, number: int, following: int, last: bool, seconds: _Seconds) -> Tensor:
        """Forward and backward pass over packed sequence `number`; gradients add up.

        following: the sequence that this process needs next, which is fetched meanwhile.
        last: it is this process's last one of the step.
        seconds: what it waits is added to.

        Returns [6 + 4 K] float64, the sums that `step_figures` takes.
        """
        objective, device = self.config.objective, self.processes.device
        started = time.perf_counter()
        packed, cached = self._next(number, following)
        packed = packed.to(device)
        fetched = time.perf_counter()
        states = self._states(packed, cached)
        if states is not None and self.run.teacher.choices is not None:
            packed = with_choices(packed, states, self.run.teacher)
        slots = trained_slots(packed, states, self.run.teacher, objective)
        seconds.wait += fetched - started
        seconds.target += time.perf_counter() - fetched
        # Dropout, in models that have it, draws from the global generator.
        torch.manual_seed(generator(self.config.loop.seed, DROPOUT, number).initial_seed())
        module = self.learner.module
        features = states.features if states is not None and self.config.kind.features else None
        last_state = None if states is None else states.last_state
        with self.processes.gathering(module, last):
            tf_eal = step >= objective.tf_eal_warmup_steps
            out = module(packed, features, slots, last_state, self.run.teacher.head, tf_eal)
            out.loss.backward()
        counts = torch.tensor([len(packed.token_ids), len(packed.layout)], device=device)
        by_depth = torch.zeros(3, objective.draft_tokens, dtype=torch.float64, device=device)
        for sums, values in zip(by_depth, (out.correct, out.overlap, torch.ones_like(out.overlap)), strict=True):
            sums.index_add_(0, slots.depth, values.double())
        return torch.cat([torch.stack([out.loss.detach(), out.weight, out.ce, out.kl]), counts, by_depth.flatten(), packed.answered])

    def _update(self, step: int, sums: Tensor) -> float:
        """Update the weights with the gradients of the whole batch; returns their norm.

        A step whose loss or gradient is not finite changes no weight.
        """
        optimizer, average, progress = self.learner.optimizer, self.learner.average, self.progress
        # Gradients come as the processes' mean of sums; what is wanted is the sum over the sum of weights.
        optimizer.scale_gradients((self.processes.count / sums[1]).float())
        norm = optimizer.clip()
        if math.isfinite(norm) and math.isfinite(sums[0]):
            progress.bad = 0
            optimizer.step(step, self.config.loop.steps)
            if average is not None:
                average.update()
            return norm
        progress.bad += 1
        progress.skipped += 1
        optimizer.skip()
        if self.processes.is_main:
            self.log.print(f"step {step + 1}: loss or gradient is not finite; step skipped ({progress.skipped} in all)")
        if progress.bad == _MAX_BAD_STEPS:
            raise Pard2Error(f"loss or gradient not finite in {_MAX_BAD_STEPS} steps in a row; lower optimizer.lr. The last checkpoint is whole")
        return norm

    # --- data -------------------------------------------------------------------------------------

    def _next(self, number: int, following: int) -> Fetched:
        future = self._ahead or self._executor.submit(self._fetch, number)
        result = future.result()
        self._ahead = self._executor.submit(self._fetch, following)
        return result

    def _fetch(self, number: int) -> Fetched:
        """A packed sequence, and what the cache holds of it. Runs ahead, in a thread of its own."""
        packed = self.run.corpus.sequence(number)
        return packed, None if self.run.cache is None else self.run.cache.read(packed.examples)

    def _states(self, packed: PackedSequence, cached: list[DocumentStates | None] | None) -> DocumentStates | None:
        """What the target says about the documents; None where nothing depends on it."""
        if not self.config.asks_target:
            return None
        if self.run.cache is not None:
            return joined(self.run.cache.complete(packed.examples, cached))
        return joined(online_states(self.run.target, packed.examples, read_layers(self.learner.draft)))

    # --- what it leaves behind ----------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write a checkpoint to resume from."""
        checkpoint = self.learner.checkpoint(self.progress, self.run.origin)
        if self.processes.is_main:
            save_checkpoint(self.output / "checkpoints", self.config, checkpoint)

    def save_draft(self, last: dict[str, Any] | None = None) -> None:
        """Write the draft as it stands, or the mean of its weights.

        last: metrics of a step that are not written yet.
        """
        trained: dict[str, Any] = {}
        if self.processes.is_main:  # which alone writes the metrics
            figures = totals(self.output / "metrics.jsonl", self.progress.done, last)
            trained = {"data": self.run.data, "trained": figures | {"processes": self.processes.count}}
        self.learner.save_draft(self.output / "draft", self.progress.done, self.run.origin, trained)

    @cached_property
    def _evaluation_target(self) -> Target:
        return evaluation_target(self.config, self.run.target)

    def evaluate(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Acceptance by decoding with the saved draft, in each of its modes; the best draft so far is kept.

        record: the step's metrics.
        """
        self.save_draft(record)
        results: list[dict[str, Any]] | None = None
        if self.processes.is_main:
            target = self._evaluation_target
            dtype = torch.bfloat16 if target is not self.run.target else target.model.dtype
            draft = load_draft(str(self.output / "draft"), target, dtype, weight_format=target.weight_format)
            results = evaluate(target, draft, self.run.held_out, self.config.loop.evaluation_tokens)
            warning = implausible(record["accuracy_by_depth"], results)
            if warning:
                self.log.print(f"[bold magenta]warning:[/] {warning}")
            length = results[0]["acceptance_length"]
            if length > self.progress.best:
                self.progress.best = length
                with whole_directory(self.output / "best") as beside:
                    shutil.copytree(self.output / "draft", beside, dirs_exist_ok=True)
        return self.processes.from_main(results)


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
