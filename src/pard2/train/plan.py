"""What a run is and what it will take, said before it starts."""

import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from torch import nn

from pard2.checkpoints.loading import parse_device, parse_dtype
from pard2.config import TrainConfig
from pard2.config_methods import METHODS
from pard2.data.corpus import Examples
from pard2.data.features import LAST_STATE
from pard2.data.packing import pack
from pard2.data.state_cache import cache_bytes
from pard2.data.tally import told
from pard2.engine.capacity import free_bytes
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft, DraftSpec
from pard2.models.target import Target
from pard2.reading import printable
from pard2.train import muon
from pard2.train.estimates import Memory, Parameters, SequenceSize, Shape, StepOptions, count, sequence_flops, step_memory
from pard2.train.optimizer import muon_matrices
from pard2.units import amount, counted, duration, size

_MATMUL_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run learns from.

    conversations, tokens, predicted: of all examples.
    skipped, cut: for their length.
    not_cached: left out, since the cache lacks them.
    rows: packed sequences of an epoch.
    row_length: tokens that a packed sequence has room for.
    slots: of a packed sequence, on average.
    notes: of `Examples`.
    """

    conversations: int
    tokens: int
    predicted: int
    skipped: int
    cut: int
    not_cached: int
    rows: int
    row_length: int
    slots: float
    notes: dict[str, int]


@dataclass(frozen=True)
class Disk:
    """Bytes.

    checkpoint: one of `checkpoints`, their number, with the one that is being written.
    drafts: `draft`, `best`, and one that is being written.
    features: of a cache that lacks them all; 0 without one.
    free: now, where the run writes.
    """

    checkpoint: int
    checkpoints: int
    drafts: int
    features: int
    free: int

    @property
    def total(self) -> int:
        return self.checkpoint * self.checkpoints + self.drafts


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a step.

    optimizer: of Muon, which makes each matrix orthogonal once a step.
    seconds: of a step at the speed of bare matrix products, None where it was not measured. A real step takes
        longer: norms, softmaxes, AdamW and the disk are not counted.
    """

    target: float
    draft: float
    loss: float
    optimizer: float
    seconds: float | None

    @property
    def flops(self) -> float:
        return self.target + self.draft + self.loss + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before its first step.

    draft_tokens, mask_token, target_layers: as in `DraftSpec`; 1, None and none for an ordinary LM.
    memory_free: bytes that it may use, with what its models hold already.
    missing: lines on what a dry run assumed.
    """

    method: str
    target: str
    draft: str
    layers: int
    draft_tokens: int
    mask_token: int | None
    target_layers: tuple[int, ...]
    device: str
    parameters: Parameters
    data: Data
    steps: int
    rows_per_step: int
    epochs: float
    memory: Memory
    memory_free: int
    disk: Disk
    work: Work
    missing: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        more = {"memory": self.memory.as_dict(), "disk": asdict(self.disk) | {"total": self.disk.total}}
        seconds = None if self.work.seconds is None else self.work.seconds * self.steps
        return asdict(self) | more | {"flops_per_step": self.work.flops, "seconds": seconds}


def run_steps(config: TrainConfig, sequences: int) -> int:
    """Optimizer steps of a run over so many packed sequences an epoch.

    Raises `Pard2Error` for a warm-up that is longer.
    """
    steps = config.loop.steps or math.ceil(config.loop.epochs * sequences / config.loop.rows_per_step)
    config.optimizer.check_warmup(steps)
    return steps


def make_plan(config: TrainConfig, target: Target, draft: AnyDraft, examples: Examples, measure: bool = False, not_cached: int = 0) -> Plan:
    """The plan of one process that does all the work. The models may be on the `meta` device.

    measure: let the device multiply for half a second.
    not_cached: conversations that are not in `examples`, since the run's cache lacks them.
    """
    spec, loop = draft.spec, config.loop
    layers = () if spec is None else spec.target_layers or ()
    device, dtype = parse_device(loop.device), parse_dtype(config.target.dtype)
    options = StepOptions(
        target_itemsize=dtype.itemsize,
        head_trained=draft.head_weight.requires_grad and not config.draft.share_vocabulary,
        mixed=loop.precision == "bfloat16",
        checkpointing=loop.activation_checkpointing,
        average=config.optimizer.ema is not None,
        on_gpu=device.type == "cuda",
        target_asked=config.asks_target,
        features_once=not config.kind.cut,
    )
    matrices = _muon_matrices(config, draft)
    numbers = _parameters(target, draft, matrices)
    usual, fullest, data = _sizes(config, examples, not_cached)
    shapes, features = (Shape.of(target), Shape.of(draft)), target.hidden_size * len(layers)
    memory = step_memory(*shapes, fullest, numbers, features, options)
    held = 0 if target.device.type == "meta" else memory.target_weights + memory.draft_weights
    flops = sequence_flops(*shapes, usual, data.predicted / data.rows, features, options)
    steps = run_steps(config, data.rows)
    cached = [*dict.fromkeys([*(layers or LAST_STATE), *(config.features.layers or ())])]
    return Plan(
        method=config.method,
        target=config.target.name,
        draft=config.draft.path or draft.name.replace(target.name, config.target.name),
        layers=draft.num_layers,
        draft_tokens=config.objective.draft_tokens,
        mask_token=spec.mask_token if isinstance(spec, DraftSpec) else None,
        target_layers=layers,
        device=str(device),
        parameters=numbers,
        data=data,
        steps=steps,
        rows_per_step=loop.rows_per_step,
        epochs=steps * loop.rows_per_step / data.rows,
        memory=memory,
        memory_free=free_bytes(device) + held,
        disk=_disk(config, numbers, 0 if config.features.cache is None else cache_bytes(examples.lengths, target, cached, dtype)),
        work=_work(config, flops, sum(muon.flops(matrix.shape) for matrix in matrices), measure),
    )


def _muon_matrices(config: TrainConfig, draft: AnyDraft) -> list[nn.Parameter]:
    trainable = [parameter for parameter in draft.parameters() if parameter.requires_grad]
    return muon_matrices(trainable, draft.tables) if config.optimizer.kind == "muon" else []


def _parameters(target: Target, draft: AnyDraft, matrices: list[nn.Parameter]) -> Parameters:
    trained, projection = count(draft, trained_only=True), draft.projection if isinstance(draft, Draft) else draft.fc
    return Parameters(
        target=count(target.model),
        trained=trained,
        projection=0 if projection is None else projection.weight.numel() + (0 if projection.bias is None else projection.bias.numel()),
        frozen=count(draft) - trained,
        muon=sum(matrix.numel() for matrix in matrices),
    )


def _sizes(config: TrainConfig, examples: Examples, not_cached: int) -> tuple[SequenceSize, SequenceSize, Data]:
    """Of a usual packed sequence, of the fullest, and of all data."""
    room = config.data.row_length or config.data.max_length
    sequences = len(pack(examples.lengths, room, config.loop.seed))
    tokens, predicted = len(examples.tokens), int(examples.predicted.sum())
    document = float((examples.lengths.astype(float) ** 2).sum() / tokens)
    usual = SequenceSize.of(tokens / sequences, predicted / sequences, document, config.objective)
    fullest = SequenceSize.of(room, room * predicted / tokens, document, config.objective)
    data = Data(
        conversations=len(examples),
        tokens=tokens,
        predicted=predicted,
        skipped=examples.skipped,
        cut=examples.cut,
        not_cached=not_cached,
        rows=sequences,
        row_length=room,
        slots=usual.slots,
        notes=examples.notes,
    )
    return usual, fullest, data


def _work(config: TrainConfig, sequence: dict[str, float], optimizer: float, measure: bool) -> Work:
    """A step's operations, from those of a packed sequence and of the optimizer."""
    flops = {part: number * config.loop.rows_per_step for part, number in sequence.items()}
    if config.features.cache is not None:
        flops["target"] = 0.0  # in all epochs but the first
    flops["optimizer"] = optimizer
    device, target_dtype, precision = parse_device(config.loop.device), parse_dtype(config.target.dtype), parse_dtype(config.loop.precision)
    return Work(**flops, seconds=_seconds(flops, device, target_dtype, precision) if measure else None)


def _disk(config: TrainConfig, numbers: Parameters, features: int) -> Disk:
    owned = numbers.trained + numbers.frozen
    average = 4 * numbers.trained if config.optimizer.ema is not None else 0
    drafts = 2 + (config.data.evaluation is not None)
    there = Path(config.loop.output).absolute()
    while not there.exists():
        there = there.parent
    kept = 0 if config.features.on_generate == "delete" else features
    return Disk(
        4 * owned + 8 * numbers.trained - 4 * numbers.muon + average,
        config.loop.keep_last + 1,
        2 * owned * drafts,
        kept,
        shutil.disk_usage(there).free,
    )


def _seconds(flops: dict[str, float], device: torch.device, target_dtype: torch.dtype, precision: torch.dtype) -> float:
    rates = {dtype: matmul_rate(device, dtype) for dtype in {target_dtype, precision}}
    return flops["target"] / rates[target_dtype] + (flops["draft"] + flops["loss"] + flops["optimizer"]) / rates[precision]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of large matrix products."""
    width = 4096 if device.type == "cuda" else 1024
    a = torch.ones(width, width, device=device, dtype=dtype)
    best, spent = float("inf"), 0.0
    while spent < _MATMUL_SECONDS:  # the first is slow, and so is any during which others use the cores
        started = time.perf_counter()
        _ = a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        best, spent = min(best, seconds), spent + seconds
    return 2 * width**3 / best


def render(plan: Plan) -> RenderableType:
    """A few lines for a console."""
    numbers, data, memory, disk, work = plan.parameters, plan.data, plan.memory, plan.disk, plan.work
    losses = {"skipped for their length": data.skipped, "cut for their length": data.cut, "left out: not in the cache": data.not_cached}
    lost = "".join(f"; {n:,} {what}" for what, n in losses.items() if n)
    phases = {"the target's pass": memory.target_pass, "the draft's pass": memory.draft_pass, "the optimizer's step": memory.update}
    longest = max(phases, key=lambda name: phases[name])
    inside = f" (activations {size(memory.activations)}, loss {size(memory.loss_chunks)})" if longest == "the draft's pass" else ""
    average = f", their mean {size(memory.average)}" if memory.average else ""
    reads = "" if plan.draft_tokens == 1 else f", K = {plan.draft_tokens}"
    reads += "" if plan.mask_token is None else f", mask token {plan.mask_token}"
    reads += f", features {list(plan.target_layers)}" if plan.target_layers else ""
    projection = f", {amount(numbers.projection)} of them in the projection" if numbers.projection else ""
    lines = {
        "draft": f"{plan.draft}: {METHODS[plan.method].title}, {counted(plan.layers, 'layer')}{reads}",
        "parameters": f"{amount(numbers.trained)} trained{projection}; frozen: "
        f"{amount(numbers.frozen)} of the draft, {amount(numbers.target)} of the target {plan.target}",
        "data": f"{data.conversations:,} conversations, {data.tokens:,} tokens, {data.predicted:,} of them to predict{lost}{told(data.notes)}",
        "run": f"{plan.steps:,} steps of {plan.rows_per_step} rows, {plan.epochs:.1f} epochs; {data.rows:,} rows of up to {data.row_length:,} "
        f"tokens, about {data.slots:,.0f} slots each",
        "memory": f"about {size(memory.total)} on {plan.device}, {size(plan.memory_free)} free: target {size(memory.target_weights)}, draft "
        f"{size(memory.draft_weights)}, gradients {size(memory.gradients)}, optimizer {size(memory.optimizer)}{average}, a row's target states "
        f"{size(memory.target_states)}, {longest} {size(phases[longest])}{inside}",
        "disk": f"{size(disk.total)}, {size(disk.free)} free: up to {disk.checkpoints} checkpoints of {size(disk.checkpoint)}, "
        f"drafts {size(disk.drafts)}" + (f"; feature cache {size(disk.features)}" if disk.features else ""),
        "work": f"{amount(work.flops / 1e9)} GFLOP a step: target {work.target / work.flops:.0%}, draft {work.draft / work.flops:.0%}, "
        f"loss {work.loss / work.flops:.0%}" + (f", Muon {work.optimizer / work.flops:.0%}" if work.optimizer else ""),
    }
    if work.seconds is not None:
        lines["time"] = (
            f"estimated: {duration(work.seconds)} a step, {duration(work.seconds * plan.steps)} in all, if it ran at the speed of bare matrix "
            f"products on this machine's {plan.device} just now ({amount(work.flops / work.seconds / 1e9)} GFLOP/s); a real step takes longer"
        )
    table = Table.grid(padding=(0, 2))
    for name, line in lines.items():
        table.add_row(f"[bold]{name}[/]", escape(printable(line)))
    for line in plan.missing:
        table.add_row("[bold magenta]missing[/]", escape(printable(line)))
    for problem in problems(plan):
        table.add_row("[bold magenta]warning[/]", escape(problem))
    return table


def problems(plan: Plan) -> list[str]:
    """What will not fit, each with its way out."""
    found = []
    if plan.memory.total > plan.memory_free:
        found.append(
            "the run may need more memory than is free; lower data.row_length, or set loop.activation_checkpointing=true or loop.precision=bfloat16"
        )
    if plan.disk.total > plan.disk.free:
        found.append("the run needs more disk than is free; lower loop.keep_last, or name another loop.output")
    return found
