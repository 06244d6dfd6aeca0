"""The training loop: target and draft in one process, or in several that share out the rows of each step.

Every step is a function of (config, step number, weights), so a killed run resumes where its last
checkpoint stands and ends with the same weights as one that was never killed.
"""

import copy
import json
import math
import resource
import shutil
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.config import TrainConfig
from pard2.data.examples import Examples
from pard2.data.features import DocumentStates, joined, online_states
from pard2.data.records import read_records
from pard2.data.state_cache import StateCache
from pard2.errors import Pard2Error
from pard2.files import claim, whole_directory
from pard2.train.allocator import keep_freed_memory
from pard2.train.attention import attention_kind
from pard2.train.compatibility import check_compatibility
from pard2.train.evaluate import evaluate, held_out_prompts
from pard2.train.initial import initial_draft, meta_pair, run_examples
from pard2.train.metrics import MetricsLog, step_figures
from pard2.train.optimizer import Optimizer, WeightAverage, learning_rate
from pard2.train.origin import Origin
from pard2.train.packed_sequences import DROPOUT, Rows
from pard2.train.plan import make_plan, render, run_steps
from pard2.train.plausibility import implausible
from pard2.train.processes import Processes, whole, with_values
from pard2.train.progress import TrainingProgress
from pard2.train.projection import StandardisedProjection, feature_std
from pard2.train.state import RunState, check_output, generator, load_state, run_record, save_state
from pard2.train.step import PackedLoss, PackedSequence, Teacher, trained_slots
from pard2.train.stopping import Stopped, StopSignals

_CALIBRATION_DOCUMENTS = 16
_MAX_BAD_STEPS = 5

# A row, and what a cache holds of its documents; None without a cache.
Fetched = tuple[PackedSequence, list[DocumentStates | None] | None]


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Run or resume a training run; returns the directory of the finished draft.

    Raises `Pard2Error` for data without a token to predict, an output that cannot be written or holds
    something else, another run included, or a loss that stays not finite; the last good checkpoint is kept. Raises `Stopped` once a checkpoint
    is written after Ctrl-C, SIGTERM or SIGHUP.
    """
    console = console or Console(stderr=True)
    output = Path(config.loop.output)
    processes = Processes(config.loop.device, config.loop.sharding)
    if processes.device.type == "cpu":
        keep_freed_memory()
    if processes.is_main:
        check_output(config)
    with processes.together(), claim(output) if processes.is_main else nullcontext():
        if config.loop.rows_per_step % processes.count:
            raise Pard2Error(f"loop.rows_per_step={config.loop.rows_per_step} cannot be shared out evenly among {processes.count} processes")
        _Run(config, processes, console).steps()
    return output / "draft"


class _Run:
    """One run: its models, its data, and how far it has come."""

    def __init__(self, config: TrainConfig, processes: Processes, console: Console) -> None:
        self.config, self.processes, self.console = config, processes, console
        self.output = Path(config.loop.output)
        with processes.main_first():
            pair = meta_pair(config)
        examples = run_examples(config, *pair)
        torch.manual_seed(config.loop.seed)
        with processes.main_first():
            self.target = load_target(config.target.name, config.target.dtype, processes.device, weight_format="plain")
            state = load_state(self.output / "checkpoints", config)
        processes.agree(
            0 if state is None else state.step, f"not every process sees the checkpoints in {self.output}; put loop.output on a disk that all share"
        )
        self.held_out: list[list[int]] = []
        if config.data.evaluation is not None and processes.is_main:
            records = read_records(config.data.evaluation)[: config.loop.evaluation_prompts]
            self.held_out = held_out_prompts(self.target, records, config.data.chat_template_kwargs, examples)
        self.draft = initial_draft(config, self.target, examples)
        self.draft.spec = replace(self.draft.spec, template_arguments=examples.arguments)
        attention = attention_kind(config.loop.attention, processes.device)
        check_compatibility(self.target, self.draft, examples, attention)
        self.cache = self._open_cache()
        found = len(examples)
        if self.cache is not None:
            examples = self.cache.admit(examples)
        self._standardise(examples)
        self.teacher = Teacher.of(self.target, self.draft)
        row_length = config.data.row_length or config.data.max_length
        self.rows = Rows(examples, examples.lengths, row_length, config.objective, config.loop.seed, self.teacher.places)
        steps = run_steps(config, len(self.rows))
        self.config = config = config.model_copy(update={"loop": config.loop.model_copy(update={"steps": steps, "epochs": None})})
        self.origin = Origin.of(self.target, examples, self.held_out)
        if state is not None:
            self._check_same_run(state)
        self.draft.train()
        if config.loop.activation_checkpointing:
            self.draft.lm.gradient_checkpointing_enable({"use_reentrant": False})

        # A sharded draft is neither saved nor decoded with; this copy is filled with its weights for that.
        self.shell = copy.deepcopy(self.draft).cpu() if config.loop.sharding == "fsdp" and processes.is_main else None
        precision = torch.bfloat16 if config.loop.precision == "bfloat16" else torch.float32
        module = PackedLoss(self.draft, config.objective, attention, precision, self.teacher.size)
        self.wrapped = processes.wrap(module, self.draft.lm.get_submodule(self.draft.blocks_name))
        trainable = {name: parameter for name, parameter in self.draft.named_parameters() if parameter.requires_grad}
        self.optimizer = Optimizer(trainable, config.optimizer, self.draft.tables)
        self.average = None if config.optimizer.ema is None else WeightAverage(trainable, config.optimizer.ema)
        self.done, self.skipped, self.bad, self.best = 0, 0, 0, 0.0
        self.stop, self._asked = StopSignals(console.print if processes.is_main else lambda line: None), False
        self._ahead: Future[Fetched] | None = None
        if state is not None:
            self._restore(state)
        if processes.is_main:
            console.print(render(make_plan(config, self.target, self.draft, examples, not_cached=found - len(examples))))
            if state is not None:
                unknown = "; its checkpoint is of an older version, which did not note target and data: that they are the same is not checked"
                console.print(f"resuming after step {self.done:,}{unknown if state.origin is None else ''}")

    # --- data -------------------------------------------------------------------------------------

    def _open_cache(self) -> StateCache | None:
        features, layers = self.config.features, self.draft.spec.target_layers
        return None if features.cache is None else StateCache.open(features.cache, self.target, layers, features.on_missing, features.on_generate)

    def _standardise(self, examples: Examples) -> None:
        if not self.config.draft.standardise_features:
            return
        some = [examples[i] for i in range(0, len(examples), max(1, len(examples) // _CALIBRATION_DOCUMENTS))][:_CALIBRATION_DOCUMENTS]
        features = [states.features for states in online_states(self.target, some, self.draft.spec.target_layers)]
        embedding_rms = float(self.draft.lm.get_input_embeddings().weight.float().square().mean().sqrt())
        self.draft.projection = StandardisedProjection(self.draft.projection, feature_std(features), self.draft.spec.scale, embedding_rms)

    def _fetch(self, number: int) -> Fetched:
        """A row, and what the cache holds of it. Runs ahead, in a thread of its own."""
        row = self.rows.row(number)
        return row, None if self.cache is None else self.cache.read(row.examples)

    def _states(self, row: PackedSequence, cached: list[DocumentStates | None] | None) -> DocumentStates:
        if self.cache is not None:
            return joined(self.cache.complete(row.examples, cached))
        return joined(online_states(self.target, row.examples, self.draft.spec.target_layers))

    # --- steps ------------------------------------------------------------------------------------

    def steps(self) -> None:
        """Take the steps that are left, and leave the finished draft. Raises `Stopped` after a step in which a signal came, but the last."""
        loop, is_main = self.config.loop, self.processes.is_main
        log = MetricsLog(self.output, self.config.log.tensorboard, self.config.log.wandb, self.config.model_dump(mode="json")) if is_main else None
        progress = TrainingProgress(self.console, loop.steps, self.done) if is_main else None
        with log or nullcontext(), progress or nullcontext(), self.cache or nullcontext(), ThreadPoolExecutor(1) as ahead, self.stop:
            if log is not None:
                log.forget_after(self.done)
            self._executor = ahead
            for step in range(self.done, loop.steps):
                record = self.step(step)
                self.done = step + 1
                last = self.done == loop.steps
                due = self.config.data.evaluation is not None and (self.done % loop.evaluate_every == 0 or last)
                if due and (last or not self._stopping()):  # whoever stops a run may not wait for an evaluation
                    record["evaluation"] = self.evaluate(record)
                if log is not None and progress is not None:
                    log.write(record)
                    progress.update(record)
                stopping = self._stopping() and not last
                if self.done % loop.save_every == 0 or last or stopping:
                    self.save()
                if stopping:
                    self.processes.from_main(self.done)  # which has written the checkpoint by then: a launcher ends all when one ends
                    raise Stopped(self.stop.caught or signal.SIGTERM, self.done)
        self.export()

    def _stopping(self) -> bool:
        """Whether a signal has come to this process or, until the end of the last step's passes, to another."""
        return self._asked or (self.processes.count == 1 and self.stop.caught > 0)

    def _next(self, number: int, following: int) -> Fetched:
        future = self._ahead or self._executor.submit(self._fetch, number)
        result = future.result()
        self._ahead = self._executor.submit(self._fetch, following)
        return result

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step over the global batch; returns its metrics."""
        began = time.perf_counter()
        objective, loop, device = self.config.objective, self.config.loop, self.processes.device
        numbers = [*range(step * loop.rows_per_step + self.processes.rank, (step + 1) * loop.rows_per_step, self.processes.count)]
        k, waited, target_seconds = objective.draft_tokens, 0.0, 0.0
        sums = torch.zeros(7 + 4 * k, dtype=torch.float64, device=device)  # as `step_figures` takes them, and at last whether to stop
        for number in numbers:
            started = time.perf_counter()
            row, cached = self._next(number, number + self.processes.count if number != numbers[-1] else numbers[0] + loop.rows_per_step)
            row = row.to(device)
            fetched = time.perf_counter()
            states = self._states(row, cached)
            slots = trained_slots(row, states, self.teacher, objective)
            waited += fetched - started
            target_seconds += time.perf_counter() - fetched
            # Dropout, in models that have it, draws from the global generator.
            torch.manual_seed(generator(loop.seed, DROPOUT, number).initial_seed())
            with self.processes.gathering(self.wrapped, last=number == numbers[-1]):
                tf_eal = step >= objective.tf_eal_warmup_steps
                out = self.wrapped(row, states.features, slots, states.last_state, self.teacher.head, tf_eal)
                out.loss.backward()
            counts = torch.tensor([len(row.token_ids), len(row.layout)], device=device)
            sums[:6] += torch.cat([torch.stack([out.loss.detach(), out.weight, out.ce, out.kl]), counts])
            for place, values in enumerate((out.correct, out.overlap, torch.ones_like(out.overlap))):
                sums[6 + place * k : 6 + (place + 1) * k].index_add_(0, slots.depth, values.double())
            sums[6 + 3 * k : -1] += row.answered
        sums[-1] = self.stop.caught
        self.processes.sum(sums)
        self._asked = bool(sums[-1] > 0)
        norm = self._update(step, sums)
        figures = step_figures(sums.tolist(), k)
        seconds = time.perf_counter() - began
        return {
            "step": step + 1,
            **figures,
            "lr": learning_rate(step, loop.steps, self.config.optimizer),
            "gradient_norm": round(norm, 4),
            "skipped_steps": self.skipped,
            "seconds": round(seconds, 3),
            "wait_seconds": round(waited, 3),
            "target_seconds": round(target_seconds, 3),
            "slots_per_second": round(figures["slots"] / seconds, 1),
            "memory_bytes": _peak_memory(device),
        }

    def _update(self, step: int, sums: Tensor) -> float:
        """Update the weights with the gradients of the whole batch; returns their norm. A step that is not finite changes nothing."""
        # Gradients come as the processes' mean of sums; what is wanted is the sum over the sum of weights.
        self.optimizer.scale_gradients((self.processes.count / sums[1]).float())
        norm = self.optimizer.clip()
        if math.isfinite(norm) and math.isfinite(sums[0]):
            self.bad = 0
            self.optimizer.step(step, self.config.loop.steps)
            if self.average is not None:
                self.average.update()
            return norm
        self.bad += 1
        self.skipped += 1
        self.optimizer.skip()
        if self.processes.is_main:
            self.console.print(f"step {step + 1}: loss or gradient is not finite; step skipped ({self.skipped} in all)")
        if self.bad == _MAX_BAD_STEPS:
            raise Pard2Error(f"loss or gradient not finite in {_MAX_BAD_STEPS} steps in a row; lower optimizer.lr. The last checkpoint is whole")
        return norm

    # --- what it leaves behind ----------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint to resume from."""
        state = RunState(
            self.done,
            {name: whole(value).cpu() for name, value in self.draft.state_dict().items()},
            {name: {} for name in self.optimizer.parameters} | self.optimizer.state_dict(),  # a parameter's loss would not be seen otherwise
            {} if self.average is None else self.average.state_dict(),
            self.skipped,
            self.bad,
            self.best,
            self.origin,
            self.config.loop.steps,
        )
        if self.processes.is_main:
            save_state(self.output / "checkpoints", self.config, state)

    def _check_same_run(self, state: RunState) -> None:
        """Raises `Pard2Error`, in all processes, where the main one finds that the run was begun with something else."""
        difference = None if state.origin is None else state.origin.difference(self.origin, self.config)
        if state.steps != self.config.loop.steps:
            difference = difference or f"another number of steps, {state.steps:,} and not {self.config.loop.steps:,} (loop.epochs)"
        difference = self.processes.from_main(difference or "")
        if difference:
            raise Pard2Error(f"{self.output} holds a run with {difference}; put that back, or name another loop.output")

    def _restore(self, state: RunState) -> None:
        try:
            weights = self.draft.state_dict()
            if weights.keys() != state.weights.keys() or (state.origin is not None and state.optimizer.keys() != self.optimizer.parameters.keys()):
                raise KeyError
            with torch.no_grad():
                for name, value in weights.items():
                    value.copy_(with_values(value, state.weights[name]))
            self.optimizer.load_state_dict(state.optimizer)
            if self.average is not None:
                self.average.load_state_dict(state.average)
        except (AttributeError, KeyError, ValueError, RuntimeError):
            raise Pard2Error(
                f"{self.output} holds a damaged checkpoint, or a run with other models under the same names; name another loop.output, or remove it"
            ) from None
        self.done, self.skipped, self.bad, self.best = state.step, state.skipped, state.bad, state.best

    def export(self) -> None:
        """Write the draft as it stands, or the mean of its weights, in the released layout, with what it was made by."""
        with self.average.in_place() if self.average is not None else nullcontext():
            weights = {name: whole(value) for name, value in self.draft.state_dict().items()} if self.config.loop.sharding == "fsdp" else None
            if not self.processes.is_main:
                return
            if self.shell is not None:
                self.shell.load_state_dict(weights)
            with whole_directory(self.output / "draft") as beside:
                save_draft(self.shell or self.draft, beside, torch.bfloat16, vocabulary=not self.config.draft.share_vocabulary)
                (beside / "training.json").write_text(json.dumps(run_record(self.config, self.done, self.origin), indent=1))

    def evaluate(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Acceptance by real decoding with the exported draft, in both modes; the best one so far is kept."""
        self.export()
        results: list[dict[str, Any]] | None = None
        if self.processes.is_main:
            draft = load_draft(str(self.output / "draft"), self.target, self.target.model.dtype, weight_format="plain")
            results = evaluate(self.target, draft, self.held_out, self.config.loop.evaluation_tokens)
            warning = implausible(record["accuracy_by_depth"], results)
            if warning:
                self.console.print(f"[bold yellow]warning:[/] {warning}")
            length = results[0]["acceptance_length"]
            if length > self.best:
                self.best = length
                with whole_directory(self.output / "best") as beside:
                    shutil.copytree(self.output / "draft", beside, dirs_exist_ok=True)
        return self.processes.from_main(results)


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
