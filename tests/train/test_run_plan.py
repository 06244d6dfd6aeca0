"""What a run is said to take, against what it takes."""

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from train_runs import packed_loss, prepare, write_records

from chat_tokenizer import MASK_ID, VOCABULARY, byte_tokenizer
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.meta import meta_draft, meta_target
from pard2.checkpoints.pruning import cut_draft
from pard2.checkpoints.write import save_draft
from pard2.config import ObjectiveConfig, TrainConfig
from pard2.data.corpus import Example, Examples, ExamplesBuilder
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.train import plan as planning
from pard2.train.attention import draft_states
from pard2.train.dry_run import dry_run
from pard2.train.estimates import SequenceSize, Shape, StepOptions, activation_bytes, sequence_flops
from pard2.train.initial import initial_draft
from pard2.train.packed_sequences import PackedCorpus, PackedSequence, lay_out
from pard2.train.plan import make_plan, problems, render
from tiny import tiny_model

LAYERS = (-1, -2)
OPTIONS = StepOptions(target_itemsize=4, head_trained=True, mixed=False, checkpointing=False, average=False, on_gpu=False)


def conversation(name: str, prompt: int, answer: int) -> Example:
    return Example.of(name, [7] * (prompt + answer), [False] * prompt + [True] * answer)


def corpus(examples: Sequence[Example]) -> Examples:
    builder = ExamplesBuilder()
    for example in examples:
        builder.add(example, "")
    return builder.build()


def pair(architecture: str, layers: int = 2, hidden: int = 64, **shape: int) -> tuple[Target, Draft]:
    target = Target(tiny_model(architecture, layers=layers, hidden=hidden, **({"vocab": VOCABULARY} | shape)), byte_tokenizer(), "tiny")
    return target, cut_draft(target, list(range(layers)), MASK_ID, 6, LAYERS).float()


# --- slots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", ["response", "all"])
def test_expected_slots_are_not_those_of_a_run(anchors):
    objective = ObjectiveConfig(draft_tokens=16, anchors=anchors)
    examples = corpus([conversation(str(i), 100 + 7 * i, 250 - 3 * i) for i in range(40)])
    packed = PackedCorpus(examples, examples.lengths, 1024, objective, seed=1)
    made = [packed.sequence(number) for number in range(len(packed))]
    expected = SequenceSize.of(len(examples.tokens) / len(packed), examples.predicted.sum() / len(packed), 350, objective)
    slots, predicting = (sum(counts) / len(packed) for counts in ([len(one.layout) for one in made], [len(one.trained) for one in made]))
    assert expected.slots == pytest.approx(slots, rel=0.03)
    assert expected.predicting == pytest.approx(predicting, rel=0.1)


# --- memory ---------------------------------------------------------------------------------------


def kept_by_autograd(draft: Draft, packed: PackedSequence, features: torch.Tensor, mixed: bool) -> int:
    """Bytes of all tensors that the backward pass of the draft's layers will read, weights
    and their copies left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in draft.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights and len(packed.layout) in tensor.shape:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(len(packed.layout), dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        draft_states(draft, tokens, features[packed.layout.anchor_index], packed.layout, "blocks", packed.with_features)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_activations_are_not_what_autograd_keeps(architecture, mixed, checkpointing):
    target, draft = pair(architecture, layers=4)
    draft.train()
    if checkpointing:
        draft.lm.gradient_checkpointing_enable({"use_reentrant": False})
    packed = lay_out([conversation("a", 30, 70)], ObjectiveConfig(draft_tokens=6), torch.Generator().manual_seed(0))
    shape = Shape.of(draft)
    features = torch.randn(100, 2 * target.hidden_size)
    kept = kept_by_autograd(draft, packed, features, mixed)
    if checkpointing:  # the layer that is run again comes later
        kept += activation_bytes(replace(shape, layers=1), len(packed.layout), 0, 4, mixed, False) - 8 * shape.hidden * len(packed.layout)
    assert activation_bytes(shape, len(packed.layout), 2 * target.hidden_size, 4, mixed, checkpointing) == pytest.approx(kept, rel=0.12)


# --- operations -----------------------------------------------------------------------------------


def test_operations_are_not_those_of_a_step():
    target, draft = pair("llama", layers=3, hidden=64, context=1024)
    objective = ObjectiveConfig(draft_tokens=6)
    examples = [conversation("a", 100, 300), conversation("b", 50, 150)]
    with FlopCounterMode(display=False) as front:
        prepared = prepare(target, examples, objective)
    with FlopCounterMode(display=False) as rest:
        packed_loss(draft, target, prepared, objective, attention="blocks").loss.backward()
    size = SequenceSize.of(600, 450, (400**2 + 200**2) / 600, objective)

    def estimate(size: SequenceSize) -> dict[str, float]:
        return sequence_flops(Shape.of(target), Shape.of(draft), size, 450, 128, OPTIONS)

    cat = 2 * VOCABULARY * 64 * 450  # a part of the loss in the estimate, of the target's half in the step
    # The counter does not know the fused attention that the target runs.
    assert estimate(replace(size, document=0))["target"] + cat == pytest.approx(front.get_total_flops(), rel=0.05)
    assert estimate(size)["target"] - estimate(replace(size, document=0))["target"] == pytest.approx(3 * 4 * 64 * (400**2 + 200**2) / 2)
    assert estimate(size)["draft"] + estimate(size)["loss"] - cat == pytest.approx(rest.get_total_flops(), rel=0.1)


def test_checkpointing_and_a_borrowed_head_cost_what_they_did_before():
    shape = Shape.of(pair("llama")[1])
    size = SequenceSize.of(100, 50, 100, ObjectiveConfig())

    def flops(**changes: bool) -> dict[str, float]:
        return sequence_flops(shape, shape, size, 50, 128, replace(OPTIONS, **changes))

    assert flops(checkpointing=True)["draft"] > 1.2 * flops()["draft"]
    assert flops(head_trained=False)["loss"] < flops()["loss"]


# --- the plan -------------------------------------------------------------------------------------

WORDS = [(f"question number {i}?", "an answer of some words " * (1 + i % 2)) for i in range(12)]


@pytest.fixture
def config(make_config, tmp_path) -> TrainConfig:
    data = write_records(tmp_path / "train.jsonl", WORDS)
    return make_config(data={"train": [str(data)], "max_length": 96, "row_length": 192}, loop={"output": str(tmp_path / "new" / "run")})


@pytest.mark.parametrize("draft", [{}, {"share_vocabulary": True}], ids=["whole", "shared"])
def test_a_dry_run_plans_another_run_than_the_run_itself(config, draft, tmp_path):
    """Weights on the meta device must count as those in memory do."""
    config = config.model_copy(update={"draft": config.draft.model_copy(update=draft)})
    dry = dry_run(config)
    assert not (tmp_path / "new").exists()
    target = load_target(config.target.name, "float32", "cpu", weight_format="plain")
    loaded = initial_draft(config, target)
    examples = corpus([Example.of(str(i), [1] * n, [True] * n) for i, n in enumerate((50, 60))])
    wet = make_plan(config, target, loaded, examples)
    assert wet.parameters == dry.parameters and wet.disk.checkpoint == dry.disk.checkpoint
    assert wet.memory.optimizer == dry.memory.optimizer and wet.memory.target_weights == dry.memory.target_weights
    assert dry.parameters.trained == sum(p.numel() for p in loaded.parameters())
    assert dry.parameters.projection == 2 * 32 * 32 and dry.parameters.target == sum(p.numel() for p in target.model.parameters())
    assert dry.work.seconds > 0 and wet.work.seconds is None


def test_counts_of_data_steps_and_epochs(config):
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"steps": None, "epochs": 3.0})})
    target = meta_target(config.target.name)
    with torch.device("meta"):
        draft = initial_draft(config, target)
    plan = make_plan(config, target, draft, corpus([conversation(str(i), 30, 60) for i in range(7)]))
    assert (plan.data.conversations, plan.data.tokens, plan.data.predicted, plan.data.rows) == (7, 630, 420, 4)
    assert plan.steps == 6 and plan.rows_per_step == 2 and plan.epochs == 3.0  # 3 epochs of 4 rows, 2 rows a step
    assert plan.data.slots == pytest.approx(630 / 4 + 420 / 4 * (0.7 + 0.49 + 0.343))


def test_an_option_leaves_the_plan_as_it_was(config):
    def planned(**changes: dict) -> planning.Plan:
        sections = config.model_dump()
        for section, fields in changes.items():
            sections[section] |= fields
        changed = TrainConfig.model_validate(sections)
        target = meta_target(changed.target.name)
        with torch.device("meta"):
            draft = initial_draft(changed, target)
        return make_plan(changed, target, draft, corpus([conversation(str(i), 30, 60) for i in range(7)]))

    usual = planned()
    trained = usual.parameters.trained
    assert planned(optimizer={"ema": 0.99}).memory.average == 4 * trained
    assert planned(optimizer={"ema": 0.99}).disk.checkpoint - usual.disk.checkpoint == 4 * trained
    assert planned(loop={"activation_checkpointing": True}).memory.activations < usual.memory.activations
    assert planned(loop={"precision": "bfloat16"}).memory.activations < usual.memory.activations
    assert planned(target={"dtype": "bfloat16"}).memory.target_weights * 2 == usual.memory.target_weights
    assert planned(loop={"keep_last": 5}).disk.total - usual.disk.total == 4 * usual.disk.checkpoint
    assert planned(data={"evaluation": "x.jsonl"}).disk.drafts * 2 == usual.disk.drafts * 3
    cached = planned(features={"cache": "states"})
    assert cached.disk.features > 630 * 64 * 4 and cached.work.target == 0 and usual.disk.features == 0
    assert planned(features={"cache": "states", "on_generate": "delete"}).disk.features == 0
    assert planned(data={"row_length": 384}).memory.activations == pytest.approx(2 * usual.memory.activations, rel=0.01)


def test_a_dry_run_loads_the_weights_of_the_draft_that_it_starts_from(config, tmp_path):
    """A small LM and a PARD-2 draft, with their weight files gone."""
    target = load_target(config.target.name, "float32", "cpu", weight_format="plain")
    whole = initial_draft(config, target)
    ordinary = Draft(whole.lm, None, None, target.tokenizer, "lm")
    for name, draft in (("pard2", whole), ("lm", ordinary)):
        save_draft(draft, tmp_path / name)
        for file in (*(tmp_path / name).glob("*.safetensors"), *(tmp_path / name).glob("*.bin")):
            file.unlink()
        started = config.model_copy(update={"draft": config.draft.model_copy(update={"layers": None, "path": str(tmp_path / name)})})
        assert dry_run(started).parameters == dry_run(config).parameters, name
    shapes = {key: tensor.shape for key, tensor in meta_draft(str(tmp_path / "pard2"), meta_target(config.target.name)).state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in whole.state_dict().items()}


def test_what_does_not_fit_is_not_said(config, monkeypatch):
    assert problems(dry_run(config)) == []
    monkeypatch.setattr(planning, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    plan = dry_run(config)
    memory, disk = problems(plan)
    assert "loop.activation_checkpointing=true" in memory and "loop.keep_last" in disk
    console = Console(file=io.StringIO(), width=300)
    console.print(render(plan))
    shown = console.file.getvalue()
    assert memory in shown and disk in shown


def test_a_line_of_the_plan_is_missing(config):
    console = Console(file=io.StringIO(), width=400)
    console.print(render(dry_run(config)))
    lines = {line.split()[0]: line for line in console.file.getvalue().splitlines()}
    assert list(lines) == ["draft", "parameters", "data", "run", "memory", "disk", "work", "time"]
    assert "2 layers, K = 4" in lines["draft"] and "features [-1, -2]" in lines["draft"]
    assert "12 conversations" in lines["data"] and "6 steps of 2 rows" in lines["run"]
    assert "estimated" in lines["time"] and "GFLOP" in lines["work"]
