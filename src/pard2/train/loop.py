"""The training loop: target online in the same process, one device.

Every step is a function of (config, step number, weights), so a killed run resumes where its last
checkpoint stands and ends with the same weights as one that was never killed.
"""

import json
import math
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pard2.config import TrainConfig
from pard2.data.chat import Example, tokenize_conversation
from pard2.data.records import Record, read_records
from pard2.errors import Pard2Error
from pard2.models.checkpoint import load_draft, save_draft
from pard2.models.draft import Draft, SharedEmbedding
from pard2.models.pruning import cut_draft, even_layers, unused_token
from pard2.models.target import Target
from pard2.train.compatibility import check_compatibility
from pard2.train.evaluate import acceptance
from pard2.train.optimizer import Optimizer, learning_rate
from pard2.train.projection import StandardisedProjection, feature_std
from pard2.train.state import generator, load_state, save_state
from pard2.train.step import prepare_row, row_loss

_CALIBRATION_DOCUMENTS = 16
_MAX_BAD_STEPS = 5


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Run or resume a training run; returns the directory of the finished draft.

    Raises `Pard2Error` for data without a token to predict, an output that cannot be written or holds
    another run, or a loss that stays not finite; the last good checkpoint is kept.
    """
    console = console or Console(stderr=True)
    output = Path(config.loop.output)
    metrics = _open_metrics(output)
    with metrics:
        torch.manual_seed(config.loop.seed)
        target = Target.from_pretrained(config.target.name, config.target.dtype, config.loop.device, pack=False)
        if target.tokenizer is None:
            raise Pard2Error(f"{config.target.name!r} has no tokenizer, which training needs")
        draft = _initial_draft(config, target)
        examples = _examples(config, target)
        check_compatibility(target, draft, examples)
        held_out = read_records(config.data.evaluation)[: config.loop.evaluation_prompts] if config.data.evaluation else []
        target.capture(draft.spec.target_layers)
        _prepare_trainable(config, target, draft, examples)
        optimizer = Optimizer(draft, config.optimizer)
        done = load_state(output / "checkpoint", config, draft, optimizer)
        _forget_after(metrics, done)
        _print_plan(console, config, draft, optimizer, examples, done)
        run = _Run(config, target, draft, optimizer, examples, held_out, metrics, console)
        run.steps(done)
    save_draft(draft, output / "draft", torch.bfloat16, vocabulary=not config.draft.share_vocabulary)
    return output / "draft"


def _open_metrics(output: Path) -> BinaryIO:
    try:
        output.mkdir(parents=True, exist_ok=True)
        return open(output / "metrics.jsonl", "ab+")
    except OSError as error:
        raise Pard2Error(f"cannot write loop.output {output}: {error.strerror}") from None


def _forget_after(metrics: BinaryIO, done: int) -> None:
    """Drop the lines of steps that a killed run took after its last checkpoint: they will be taken again."""
    metrics.seek(0)
    end = 0
    while (line := metrics.readline()).endswith(b"\n") and json.loads(line)["step"] <= done:
        end = metrics.tell()
    metrics.truncate(end)


def _initial_draft(config: TrainConfig, target: Target) -> Draft:
    wanted, objective = config.draft, config.objective
    if wanted.share_vocabulary and target.model.dtype != torch.float32:
        raise Pard2Error("draft.share_vocabulary trains through the target's own tables, which needs target.dtype=float32")
    if wanted.path is not None:
        draft = load_draft(wanted.path, target, torch.float32, target_dependent=None)
        if draft.spec is None or draft.projection is None or draft.spec.draft_tokens != objective.draft_tokens:
            raise Pard2Error(
                f"draft.path {wanted.path!r} must be a PARD-2 draft of K = {objective.draft_tokens} (objective.draft_tokens); "
                "make one with `pard2 draft init`"
            )
        if wanted.share_vocabulary and not isinstance(draft.lm.get_input_embeddings(), SharedEmbedding):
            raise Pard2Error(f"draft.path {wanted.path!r} has a vocabulary of its own; set draft.share_vocabulary=false")
        return draft.requires_grad_(True)
    layers = even_layers(wanted.layers, target.num_states - 1) if isinstance(wanted.layers, int) else list(wanted.layers or [])
    mask = unused_token(target) if wanted.mask_token is None else wanted.mask_token
    chosen = tuple(wanted.target_layers) if wanted.target_layers else None
    # Whatever the target's precision, small updates need float32 weights.
    return cut_draft(target, layers, mask, objective.draft_tokens, chosen, wanted.scale, wanted.share_vocabulary).float()


def _examples(config: TrainConfig, target: Target) -> list[Example]:
    records: list[Record] = [record for path in config.data.train for record in read_records(path)]
    return [tokenize_conversation(target.tokenizer, record, target.eos_token_ids, config.data.max_length) for record in records]


def _prepare_trainable(config: TrainConfig, target: Target, draft: Draft, examples: list[Example]) -> None:
    draft.train()
    if not config.draft.standardise_features:
        return
    some = examples[:: max(1, len(examples) // _CALIBRATION_DOCUMENTS)][:_CALIBRATION_DOCUMENTS]
    features = [target.forward(torch.tensor([e.token_ids], device=target.device), num_logits=0).features[0] for e in some]
    embedding_rms = float(draft.lm.get_input_embeddings().weight.float().square().mean().sqrt())
    draft.projection = StandardisedProjection(draft.projection, feature_std(features), draft.spec.scale, embedding_rms)


def _print_plan(console: Console, config: TrainConfig, draft: Draft, optimizer: Optimizer, examples: list[Example], done: int) -> None:
    trainable = sum(p.numel() for p in optimizer.parameters)
    tokens = sum(sum(e.predicted) for e in examples)
    seen = config.loop.steps * config.loop.documents_per_step
    console.print(
        f"[bold]{draft.name}[/]: {draft.num_layers} layers, {trainable / 1e6:.1f} M trainable parameters, K = {draft.spec.draft_tokens}, "
        f"mask token {draft.spec.mask_token}, features {list(draft.spec.target_layers)}\n"
        f"{len(examples):,} conversations with {tokens:,} tokens to predict; {config.loop.steps:,} steps of {config.loop.documents_per_step} "
        f"({seen / len(examples):.1f} epochs); a checkpoint of {trainable * 12 / 1e6:.0f} MB every {config.loop.save_every} steps "
        f"in {config.loop.output}"
    )
    if done:
        console.print(f"resuming after step {done:,}")


class _Run:
    """What the steps of one run share."""

    def __init__(self, config, target, draft, optimizer, examples, held_out, metrics, console) -> None:
        self.config, self.target, self.draft, self.optimizer = config, target, draft, optimizer
        self.examples, self.held_out, self.metrics, self.console = examples, held_out, metrics, console
        self.output = Path(config.loop.output)
        self.bad_steps = 0

    def steps(self, done: int) -> None:
        loop = self.config.loop
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("training", total=loop.steps, completed=done, shown="")
            for step in range(done, loop.steps):
                record = self.step(step)
                shown = f"loss {record['loss']:.3f}  AL(teacher-forced) {record['teacher_forced_al']:.2f}  {record['slots_per_second']:.0f} slots/s"
                progress.update(task, completed=step + 1, shown=shown)
                last = step + 1 == loop.steps
                if self.held_out and ((step + 1) % loop.evaluate_every == 0 or last):
                    record["evaluation"] = self.evaluate()
                # JSON has no NaN, which a skipped step's figures are.
                finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}
                self.metrics.write(json.dumps(finite).encode() + b"\n")
                self.metrics.flush()
                if (step + 1) % loop.save_every == 0 or last:
                    save_state(self.output / "checkpoint", step + 1, self.config, self.draft, self.optimizer)

    def step(self, step: int) -> dict:
        """One optimizer step over the global batch; returns its metrics."""
        began = time.perf_counter()
        objective, loop = self.config.objective, self.config.loop
        torch.manual_seed(generator(loop.seed, 2, step).initial_seed())  # dropout, in models that have it, draws from the global generator
        draw = generator(loop.seed, 1, step)
        rows = [prepare_row(self.target, examples, objective, draw, use_features) for examples, use_features in self._rows(step, draw)]
        total = sum(row.weights.sum() for row in rows)
        loss = ce = kl = 0.0
        hits: dict[int, list[int]] = {d: [0, 0] for d in range(objective.draft_tokens)}
        for row in rows:
            out = row_loss(self.draft, self.target, row, total, objective)
            out.loss.backward()
            loss, ce, kl = loss + float(out.loss.detach()), ce + float(out.ce), kl + float(out.kl)
            for depth, count in zip(*torch.unique(row.layout.depth[row.trained], return_counts=True), strict=True):
                hits[int(depth)][0] += int(out.correct[row.layout.depth[row.trained] == depth].sum())
                hits[int(depth)][1] += int(count)
        norm = self._update(step, loss)
        seconds = time.perf_counter() - began
        accuracy = [right / max(1, count) for right, count in hits.values()]
        return {
            "step": step + 1,
            "loss": round(loss, 5),
            "ce": round(ce, 5),
            "kl": round(kl, 5),
            "accuracy_by_depth": [round(a, 4) for a in accuracy],
            "teacher_forced_al": round(_expected_length(accuracy), 4),
            "lr": learning_rate(step, loop.steps, self.config.optimizer),
            "gradient_norm": round(norm, 4),
            "tokens": sum(len(row.token_ids) for row in rows),
            "slots": sum(len(row.layout) for row in rows),
            "slots_per_second": round(sum(len(row.layout) for row in rows) / seconds, 1),
            "seconds": round(seconds, 3),
        }

    def _update(self, step: int, loss: float) -> float:
        gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        finite = torch.isfinite(torch.tensor(loss)) and all(torch.isfinite(g).all() for g in gradients)
        if finite:
            self.bad_steps = 0
            return self.optimizer.step(step, self.config.loop.steps)
        self.bad_steps += 1
        self.optimizer.skip()
        self.console.print(f"step {step + 1}: loss or gradient is not finite; step skipped")
        if self.bad_steps == _MAX_BAD_STEPS:
            raise Pard2Error(f"loss or gradient not finite in {_MAX_BAD_STEPS} steps in a row; lower optimizer.lr. The last checkpoint is whole")
        return float("nan")

    def _rows(self, step: int, draw: torch.Generator) -> Iterator[tuple[list[Example], bool]]:
        """The documents of a step, grouped into rows, and whether a row has features; each epoch is a new permutation of all documents.

        Every document loses its features by itself; those that did share rows with their like.
        """
        loop, count = self.config.loop, len(self.examples)
        numbers = range(step * loop.documents_per_step, (step + 1) * loop.documents_per_step)
        documents = [self.examples[_permutation(count, loop.seed, number // count)[number % count]] for number in numbers]
        kept = (torch.rand(len(documents), generator=draw) >= self.config.objective.feature_drop).tolist()
        for use_features in (True, False):
            alike = [document for document, keeps in zip(documents, kept, strict=True) if keeps == use_features]
            for start in range(0, len(alike), loop.documents_per_row):
                yield alike[start : start + loop.documents_per_row], use_features

    def evaluate(self) -> list[dict]:
        """Acceptance by real decoding in both modes; the draft as it stands is saved beside the run."""
        self.draft.eval()
        results = [
            acceptance(self.target, self.draft, self.held_out, method, self.config.loop.evaluation_tokens) for method in ("pard2-td", "pard2-ti")
        ]
        self.target.capture(self.draft.spec.target_layers)
        self.draft.train()
        shown = ", ".join(f"{r['method']} {r['acceptance_length']:.2f}" for r in results)
        self.console.print(f"acceptance length on {len(self.held_out)} held-out prompts: {shown}")
        save_draft(self.draft, self.output / "draft", torch.bfloat16, vocabulary=not self.config.draft.share_vocabulary)
        return results


@lru_cache(maxsize=2)  # an epoch has many steps, and a step may span two
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=generator(seed, 0, epoch)).tolist()


def _expected_length(accuracy: list[float]) -> float:
    """1 + sum of prefix products: the acceptance length if the depths were independent."""
    total, prefix = 1.0, 1.0
    for value in accuracy:
        prefix *= value
        total += prefix
    return total
