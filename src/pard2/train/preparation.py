"""From a config to a run that is ready for its next step: models, data, optimizer and progress."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pard2.checkpoints.loading import load_target
from pard2.config import TrainConfig
from pard2.data.corpus import Examples
from pard2.data.features import online_states
from pard2.data.records import read_records
from pard2.data.state_cache import StateCache
from pard2.errors import Pard2Error
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.train.attention import AttentionKind, attention_kind
from pard2.train.compatibility import check_compatibility
from pard2.train.evaluate import held_out_prompts
from pard2.train.initial import cache_layers, initial_draft, meta_pair, run_examples
from pard2.train.learner import Learner
from pard2.train.origin import Origin
from pard2.train.packed_sequences import PackedCorpus
from pard2.train.plan import make_plan, render, run_steps
from pard2.train.processes import Processes
from pard2.train.projection import StandardisedProjection, feature_std
from pard2.train.run_checkpoint import RunCheckpoint, RunProgress, load_checkpoint
from pard2.train.run_log import RunLog
from pard2.train.teacher import Teacher
from pard2.train.unrolled import FIRST_ANCHOR

_CALIBRATION_DOCUMENTS = 16


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run before its next step.

    config: with the number of steps, also where the run was given in epochs.
    teacher: the target's logits of what the draft can propose.
    learner: the draft and its optimizer, as after the steps that are done.
    corpus: the run's conversations in packed sequences.
    cache: the target's hidden states on disk, None where each step computes them.
    held_out: token ids of the prompts to evaluate with; empty without any, and in all processes but the main
        one.
    origin: what target and data the run is made with.
    data: how many conversations it reads, their tokens, and those of their answers.
    progress: how far it has come.
    """

    config: TrainConfig
    processes: Processes
    target: Target
    teacher: Teacher
    learner: Learner
    corpus: PackedCorpus
    cache: StateCache | None
    held_out: list[list[int]]
    origin: Origin
    data: dict[str, int]
    progress: RunProgress


def prepare_run(config: TrainConfig, processes: Processes, log: RunLog) -> PreparedRun:
    """A new run, or one to resume; the main process shows its plan.

    Raises `Pard2Error` for models that do not fit each other, data without a token to predict, a cache that
    lacks what it must have, and an output that holds another run.
    """
    with processes.main_first():
        pair = meta_pair(config)
    with log.doing("reading the conversations"):
        examples = run_examples(config, *pair)
    torch.manual_seed(config.loop.seed)
    with log.doing(f"loading {config.target.name}"):
        target, checkpoint = _load(config, processes)
    held_out = _held_out(config, target, examples) if processes.is_main else []
    with log.doing("comparing the draft as it trains with how it decodes"):
        draft, attention = _initial_draft(config, processes, target, examples)
    found = len(examples)
    cache = _open_cache(config, target, draft)
    if cache is not None:
        examples = cache.admit(examples)
    if config.draft.standardise_features and isinstance(draft, Draft):
        with log.doing(f"reading the features of {_CALIBRATION_DOCUMENTS} conversations"):
            _standardise(draft, target, examples)
    teacher = Teacher.of(target, draft)
    max_length = config.data.row_length or config.data.max_length
    corpus = PackedCorpus(examples, examples.lengths, max_length, config.objective, config.loop.seed, *_slots(draft, teacher))
    config = _with_steps(config, len(corpus))
    origin = Origin.of(target, examples, held_out)
    if checkpoint is not None:
        _check_same_run(config, processes, checkpoint, origin)
    learner = Learner(draft, config, processes, attention, teacher.size)
    if checkpoint is not None:
        learner.restore(checkpoint)
    if processes.is_main:
        log.print(render(make_plan(config, target, draft, examples, not_cached=found - len(examples))))
        if checkpoint is not None:
            log.print(_resumed_line(checkpoint))
    return PreparedRun(
        config=config,
        processes=processes,
        target=target,
        teacher=teacher,
        learner=learner,
        corpus=corpus,
        cache=cache,
        held_out=held_out,
        origin=origin,
        data={"conversations": len(examples), "tokens": len(examples.tokens), "answer_tokens": int(examples.predicted.sum())},
        progress=RunProgress() if checkpoint is None else checkpoint.progress,
    )


def _load(config: TrainConfig, processes: Processes) -> tuple[Target, RunCheckpoint | None]:
    """The target with its weights, and the newest checkpoint, of which all processes must see the same."""
    output = Path(config.loop.output)
    with processes.main_first():
        target = load_target(config.target.name, config.target.dtype, processes.device, weight_format="plain")
        checkpoint = load_checkpoint(output / "checkpoints", config)
    done = 0 if checkpoint is None else checkpoint.progress.done
    processes.agree(done, f"not every process sees the checkpoints in {output}; put loop.output on a disk that all share")
    return target, checkpoint


def _held_out(config: TrainConfig, target: Target, examples: Examples) -> list[list[int]]:
    if config.data.evaluation is None:
        return []
    records = read_records(config.data.evaluation)[: config.loop.evaluation_prompts]
    return held_out_prompts(target, records, config.data.chat_template_kwargs, examples)


def _initial_draft(config: TrainConfig, processes: Processes, target: Target, examples: Examples) -> tuple[AnyDraft, AttentionKind]:
    """The draft to start from, and how its slots attend. Raises `Pard2Error` where that cannot be trained."""
    draft = initial_draft(config, target, examples)
    if draft.spec is not None:
        draft.spec = replace(draft.spec, template_arguments=examples.arguments)
    attention = attention_kind(config.loop.attention, processes.device)
    check_compatibility(target, draft, examples, attention, config.asks_target)
    return draft, attention


def _open_cache(config: TrainConfig, target: Target, draft: AnyDraft) -> StateCache | None:
    features = config.features
    if features.cache is None:
        return None
    return StateCache.open(features.cache, target, cache_layers(config, draft), features.on_missing, features.on_generate, features.layers or ())


def _slots(draft: AnyDraft, teacher: Teacher) -> tuple[Tensor | None, int]:
    """Of `PackedCorpus`: which tokens can be learned, and where a document's first chain begins."""
    return (teacher.columns, 0) if isinstance(draft, Draft) else (None, FIRST_ANCHOR)


def _standardise(draft: Draft, target: Target, examples: Examples) -> None:
    """Let the draft's projection learn from features of like size, as a few conversations show them."""
    every = max(1, len(examples) // _CALIBRATION_DOCUMENTS)
    some = [examples[i] for i in range(0, len(examples), every)][:_CALIBRATION_DOCUMENTS]
    features = [states.features for states in online_states(target, some, draft.spec.target_layers)]
    embedding_rms = float(draft.lm.get_input_embeddings().weight.float().square().mean().sqrt())
    draft.projection = StandardisedProjection(draft.projection, feature_std(features), draft.spec.scale, embedding_rms)


def _with_steps(config: TrainConfig, sequences: int) -> TrainConfig:
    """The config with a number of steps in place of epochs."""
    steps = run_steps(config, sequences)
    return config.model_copy(update={"loop": config.loop.model_copy(update={"steps": steps, "epochs": None})})


def _check_same_run(config: TrainConfig, processes: Processes, checkpoint: RunCheckpoint, origin: Origin) -> None:
    """Raises `Pard2Error`, in all processes, if the run was begun with something else."""
    difference = None if checkpoint.origin is None else checkpoint.origin.difference(origin, config)
    if checkpoint.steps != config.loop.steps:
        difference = difference or f"another number of steps, {checkpoint.steps:,} and not {config.loop.steps:,} (loop.epochs)"
    difference = processes.from_main(difference or "")
    if difference:
        raise Pard2Error(f"{config.loop.output} holds a run with {difference}; put that back, or name another loop.output")


def _resumed_line(checkpoint: RunCheckpoint) -> str:
    unknown = "; its checkpoint is of an older version, which did not note target and data: that they are the same is not checked"
    done = checkpoint.progress.done
    begins = f"all {done:,} steps are done; for more name another loop.output" if done >= checkpoint.steps else f"resuming after step {done:,}"
    return f"{begins}{unknown if checkpoint.origin is None else ''}"
