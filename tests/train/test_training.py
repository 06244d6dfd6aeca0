"""The loop: what it leaves behind, what it refuses, and how it fails."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_runs import CONVERSATIONS, Prepared, assert_bit_for_bit, newest, packed_loss, save_target, write_records

from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.data.corpus import Example
from pard2.data.features import joined, online_states
from pard2.errors import Pard2Error
from pard2.export.training_record import TrainingRecord, training_rows
from pard2.files import claim
from pard2.train import loop as training
from pard2.train.initial import initial_draft, run_examples
from pard2.train.loop import train
from pard2.train.packed_sequences import PackedCorpus
from pard2.train.teacher import Teacher, trained_slots
from tiny import tiny_draft


def metrics(config) -> list[dict]:
    return [json.loads(line) for line in (Path(config.loop.output) / "metrics.jsonl").read_text().splitlines()]


def checkpoint(config) -> dict[str, torch.Tensor]:
    return torch.load(newest(config.loop.output) / "state.pt", weights_only=True)["weights"]


def refused(config, quiet) -> str:
    with pytest.raises(Pard2Error) as caught:
        train(config, quiet)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SHARED = {"share_vocabulary": True, "standardise_features": True}


# A draft's weights are float32, whatever the precision of the target whose embedding and head it may use.
@pytest.mark.parametrize(("draft", "dtype"), [({}, "float32"), (SHARED, "float32"), (SHARED, "bfloat16")])
def test_a_run_learns_and_leaves_a_draft_that_loads(make_config, quiet, draft, dtype, tmp_path):
    """The finished draft is the trained weights rounded to bfloat16, the projection folded."""
    held_out = write_records(tmp_path / "held-out.jsonl", CONVERSATIONS[:1])
    config = make_config(
        target={"dtype": dtype},
        draft=draft,
        data={"evaluation": str(held_out)},
        objective={"feature_drop": 0.0},
        loop={"steps": 12, "rows_per_step": 2, "evaluate_every": 6, "evaluation_tokens": 4, "precision": dtype},
    )
    directory = train(config, quiet)
    lines = metrics(config)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert [step["step"] for step in lines if "evaluation" in step] == [6, 12]
    assert {result["method"] for result in lines[-1]["evaluation"]} == {"pard2-td", "pard2-ti"}
    target = load_target(config.target.name, "float32", "cpu")
    loaded = load_draft(str(directory), target, torch.float32, True)
    state = checkpoint(config)
    weight = state["projection.inner"] * state["projection.columns"] if "projection.inner" in state else state["projection.weight"]
    assert weight.abs().sum() > 0
    torch.testing.assert_close(loaded.projection.weight, weight.bfloat16().float(), rtol=0, atol=0)
    key = "lm.model.layers.1.mlp.up_proj.weight"
    assert loaded.state_dict()[key].equal(state[key].bfloat16().float())


def test_sequences_of_one_and_of_many_documents_take_the_same_step(make_config, quiet, tmp_path):
    """The loss is normalised over the global batch, not sequence by sequence: documents of unlike
    weight would count wrongly."""
    results = []
    for rows, length in ((3, 60), (2, 120), (1, 240)):
        config = make_config(
            objective={"retention": 1.0, "feature_drop": 0.0},
            data={"max_length": 60, "row_length": length},
            loop={"steps": 1, "rows_per_step": rows, "output": str(tmp_path / str(rows))},
        )
        train(config, quiet)
        results.append((metrics(config)[0], checkpoint(config)))
    for line, _ in results[1:]:
        for key in ("loss", "ce", "kl", "gradient_norm"):
            assert line[key] == pytest.approx(results[0][0][key], rel=1e-3)
        assert line["accuracy_by_depth"] == results[0][0]["accuracy_by_depth"] and line["tokens"] == results[0][0]["tokens"]


def test_the_gradient_is_that_of_the_mean(make_config, quiet):
    """Sums are divided by the batch's weights last of all; left out, the learning rate would mean
    something else for every batch."""
    config = make_config(data={"row_length": 160}, objective={"feature_drop": 0.0}, optimizer={"clip": 1e9}, loop={"steps": 1, "rows_per_step": 1})
    train(config, quiet)
    target = load_target(config.target.name, "float32", "cpu", weight_format="plain")
    draft = initial_draft(config, target).train()
    examples = run_examples(config, target, draft)
    packed = PackedCorpus(examples, examples.lengths, 160, config.objective, config.loop.seed).sequence(0)
    states = joined(online_states(target, packed.examples, draft.spec.target_layers))
    out = packed_loss(
        draft, target, Prepared(packed, states, trained_slots(packed, states, Teacher.of(target, draft), config.objective)), config.objective
    )
    (out.loss / out.weight).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in draft.parameters() if p.grad is not None])
    assert metrics(config)[0]["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)


@pytest.mark.parametrize(("drop", "moves"), [(1.0, False), (0.0, True)])
def test_dropped_features_do_not_train_the_projection(make_config, quiet, drop, moves):
    config = make_config(objective={"feature_drop": drop}, loop={"steps": 1})
    train(config, quiet)
    assert bool(checkpoint(config)["projection.weight"].abs().sum() > 0) == moves


def test_each_epoch_sees_every_document_once_in_a_new_order(make_config):
    examples = [Example.of(str(n), [1] * 10, [True] * 10) for n in range(8)]
    packed = PackedCorpus(examples, [10] * 8, 25, make_config().objective, seed=3)
    assert len(packed) == 4  # sequences of two documents each
    epochs = [[e.id for index in range(4) for e in packed.sequence(4 * epoch + index).examples] for epoch in range(6)]
    assert all(sorted(epoch) == list("01234567") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def poison(monkeypatch: pytest.MonkeyPatch, bad_steps: range) -> None:
    real = training.TrainingLoop._update

    def update(self, step, sums):
        if step in bad_steps:
            next(iter(self.learner.optimizer.parameters.values())).grad[0] = float("nan")
        return real(self, step, sums)

    monkeypatch.setattr(training.TrainingLoop, "_update", update)


def test_a_loss_that_is_not_finite_is_skipped(make_config, quiet, monkeypatch):
    """One bad batch must not turn every weight into NaN."""
    poison(monkeypatch, range(1, 3))
    config = make_config(loop={"steps": 5})
    train(config, quiet)
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint(config).values())
    assert "step 2: loss or gradient is not finite; step skipped (1 in all)" in quiet.file.getvalue()
    assert [line["skipped_steps"] for line in metrics(config)] == [0, 1, 2, 2, 2]


def test_a_run_that_diverged_stops_and_keeps_its_checkpoint(make_config, quiet, monkeypatch):
    poison(monkeypatch, range(2, 100))
    config = make_config(loop={"steps": 20, "save_every": 1})
    with pytest.raises(Pard2Error, match="not finite in 5 steps in a row; lower optimizer.lr. The last checkpoint is whole"):
        train(config, quiet)
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint(config).values())
    assert len(metrics(config)) == 6


def test_bad_steps_far_apart_do_not_stop_a_run(make_config, quiet, monkeypatch):
    poison(monkeypatch, range(0, 20, 2))
    train(make_config(loop={"steps": 12}), quiet)


# --- options --------------------------------------------------------------------------------------


def test_what_is_saved_is_the_mean_of_the_weights(make_config, quiet):
    config = make_config(optimizer={"ema": 0.9}, loop={"steps": 4})
    directory = train(config, quiet)
    state = torch.load(newest(config.loop.output) / "state.pt", weights_only=True)
    saved = load_file(directory / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    key = "lm.model.layers.0.mlp.up_proj.weight"
    assert saved.equal(state["average"][key].bfloat16()) and not saved.equal(state["weights"][key].bfloat16())


def test_recomputed_activations_train_the_same(make_config, quiet, tmp_path):
    runs = [make_config(loop={"activation_checkpointing": on, "steps": 3, "output": str(tmp_path / str(on))}) for on in (False, True)]
    for run in runs:
        train(run, quiet)
    plain, recomputed = map(checkpoint, runs)
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=1e-5, atol=1e-6)


def test_blocks_train_what_the_readable_mask_does(make_config, quiet, tmp_path):
    runs = [make_config(loop={"attention": kind, "steps": 3, "output": str(tmp_path / kind)}) for kind in ("blocks", "dense")]
    for run in runs:
        train(run, quiet)
    for one, other in zip(*map(metrics, runs), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4) and one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


def test_bfloat16_arithmetic_trains_float32_weights(make_config, quiet, tmp_path):
    runs = [make_config(loop={"precision": kind, "steps": 3, "output": str(tmp_path / kind)}) for kind in ("float32", "bfloat16")]
    for run in runs:
        train(run, quiet)
    assert {tensor.dtype for tensor in checkpoint(runs[1]).values()} == {torch.float32}
    losses = [[line["loss"] for line in metrics(run)] for run in runs]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.mark.parametrize(
    "objective", [{"weighting": "none"}, {"weighting": "d-pace"}, {"weighting": "overlap"}, {"cod_correction": True}, {"tf_eal_alpha": 0.5}]
)
def test_every_objective_takes_another_step_than_cat(make_config, quiet, tmp_path, objective):
    runs = [make_config(objective=o, loop={"steps": 1, "output": str(tmp_path / n)}) for n, o in (("cat", {}), ("other", objective))]
    for run in runs:
        train(run, quiet)
    assert metrics(runs[0])[0]["gradient_norm"] != metrics(runs[1])[0]["gradient_norm"]


def test_options_that_are_off_change_no_bit(make_config, quiet, tmp_path):
    off = {"tf_eal_alpha": 0.0, "tf_eal_warmup_steps": 3, "cod_correction": False, "d_pace_floor": 0.9, "weighting": "cat", "anchors": "response"}
    runs = [make_config(objective=o, loop={"output": str(tmp_path / n)}) for n, o in (("without", {}), ("off", off))]
    for run in runs:
        train(run, quiet)
    assert_bit_for_bit(*(run.loop.output for run in runs))


def test_the_added_term_waits_for_its_warm_up(make_config, quiet, tmp_path):
    runs = [
        make_config(objective=o, loop={"steps": 3, "output": str(tmp_path / n)})
        for n, o in (("a", {}), ("b", {"tf_eal_alpha": 2.0, "tf_eal_warmup_steps": 2}))
    ]
    for run in runs:
        train(run, quiet)
    plain, later = ([line["gradient_norm"] for line in metrics(run)] for run in runs)
    assert plain[:2] == later[:2] and plain[2] != later[2]


def test_epochs_are_counted_in_rows(make_config, quiet):
    config = make_config(data={"row_length": 160}, loop={"steps": None, "epochs": 3, "rows_per_step": 2})
    train(config, quiet)
    assert len(metrics(config)) == 2  # one sequence of all four conversations; three of them are a step and a half


def test_a_run_starts_from_a_small_lm(make_config, quiet, tmp_path):
    """As Llama-3.2-1B does for Llama-3.1-8B."""
    save_target(tmp_path / "sibling", hidden=16)
    config = make_config(draft={"layers": None, "path": str(tmp_path / "sibling")}, loop={"steps": 2})
    directory = train(config, quiet)
    target = load_target(config.target.name, "float32", "cpu")
    assert load_draft(str(directory), target, torch.float32, True).hidden_size == 16


# --- what it leaves behind ------------------------------------------------------------------------


def test_old_checkpoints_go_and_the_best_draft_stays(make_config, quiet, tmp_path, monkeypatch):
    lengths = iter([1.5, 1.2, 1.4])
    figures = {"method": "pard2-td", "acceptance_length_interval": None, "speedup": None, "prompts": 1}
    monkeypatch.setattr(training, "evaluate", lambda *_: [figures | {"acceptance_length": next(lengths)}])
    held_out = write_records(tmp_path / "held-out.jsonl", CONVERSATIONS[:1])
    config = make_config(data={"evaluation": str(held_out)}, loop={"save_every": 1, "keep_last": 2, "evaluate_every": 2})
    train(config, quiet)
    output = Path(config.loop.output)
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]
    made = {name: json.loads((output / name / "training.json").read_text()) for name in ("best", "draft")}
    assert (made["best"]["step"], made["draft"]["step"]) == (2, 6)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    for name, steps in (("best", 2), ("draft", 6)):
        come_to = {key: round(sum(line[key] for line in lines[:steps]), 1) for key in ("tokens", "answer_tokens", "slots", "seconds")}
        assert made[name]["trained"] == come_to | {"processes": 1}, name
    data = made["draft"]["data"]
    assert data["conversations"] == len(CONVERSATIONS) and 0 < data["answer_tokens"] < data["tokens"]
    told = dict(training_rows(TrainingRecord.model_validate(made["draft"])))  # what a card says of it
    assert list(told)[:6] == ["method", "starts from", "conversations", "trained on", "time", "hardware"] and len(told) == 12
    assert made["draft"]["config"]["objective"]["draft_tokens"] == 4 and {"argv", "commit", "versions"} <= made["draft"]["meta"].keys()


def test_a_second_run_into_one_directory(make_config, quiet):
    config = make_config()
    with claim(Path(config.loop.output)):
        assert "another run is writing to" in refused(config, quiet)
    train(config, quiet)


def test_a_full_disk_is_one_line_and_loses_nothing_that_was_complete(make_config, quiet, monkeypatch):
    real, calls = torch.save, []

    def save(state, path):
        calls.append(path)
        if len(calls) == 2:
            raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")
        real(state, path)

    config = make_config()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        assert "cannot write" in refused(config, quiet)
    assert newest(config.loop.output).name == "step-00000002"
    train(config, quiet)
    assert [line["step"] for line in metrics(config)] == [1, 2, 3, 4, 5, 6]


# --- what is refused ------------------------------------------------------------------------------


def test_data_without_a_token_to_predict(make_config, quiet):
    assert "none of the 4 conversations has an answer within `max_length` 3 tokens" in refused(make_config(data={"max_length": 3}), quiet)


def test_an_output_that_cannot_be_written(make_config, quiet, tmp_path):
    (tmp_path / "file").write_text("")
    assert refused(make_config(loop={"output": str(tmp_path / "file" / "run")}), quiet).startswith(f"cannot write {tmp_path}")


def test_a_target_without_tokenizer(make_config, quiet, tmp_path, target_directory):
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((target_directory / name).read_bytes())
    assert "has no tokenizer, which training needs" in refused(make_config(target={"name": str(tmp_path)}), quiet)


@pytest.fixture
def draft_directory(target_directory: Path, tmp_path: Path) -> Path:
    target = load_target(str(target_directory), "float32", "cpu")
    save_draft(tiny_draft(target, [0, 2], draft_tokens=4, projection=0.05, mask_token=258), tmp_path / "draft")
    return tmp_path / "draft"


def test_a_run_may_start_from_a_draft(make_config, quiet, draft_directory):
    config = make_config(draft={"layers": None, "path": str(draft_directory), "target_layers": None}, loop={"steps": 1})
    train(config, quiet)
    assert not checkpoint(config)["projection.weight"].equal(torch.load(draft_directory / "warp_model.bin", weights_only=True)["target_proj.weight"])


def test_k_may_grow_and_not_shrink(make_config, quiet, draft_directory):
    """No weight depends on the number of masks; the first step is that of the masks that it knew."""
    config = make_config(draft={"layers": None, "path": str(draft_directory)}, objective={"draft_tokens": 6}, loop={"steps": 2})
    directory = train(config, quiet)
    assert len(metrics(config)[-1]["accuracy_by_depth"]) == 6
    target = load_target(config.target.name, "float32", "cpu")
    assert load_draft(str(directory), target, torch.float32).spec.draft_tokens == 6
    smaller = make_config(draft={"layers": None, "path": str(directory)}, objective={"draft_tokens": 4}, loop={"output": config.loop.output + "2"})
    assert refused(smaller, quiet) == f"draft.path {str(directory)!r} proposes K = 6 tokens; set objective.draft_tokens to as many, or more"


@pytest.mark.parametrize(
    ("field", "value"), [("normalise_features", True), ("learn_mask_feature", True), ("target_layers", [-1]), ("mask_token", 3), ("scale", 0.5)]
)
def test_a_draft_that_was_made_otherwise(make_config, quiet, draft_directory, field, value):
    config = make_config(draft={"layers": None, "path": str(draft_directory), field: value})
    assert f"has draft.{field} = " in refused(config, quiet)


def test_sharing_a_vocabulary_that_the_draft_has_itself(make_config, quiet, draft_directory):
    """It used to be found out when the finished draft was to be saved."""
    config = make_config(draft={"layers": None, "path": str(draft_directory), "share_vocabulary": True})
    assert refused(config, quiet).endswith("has a vocabulary of its own; set draft.share_vocabulary=false")


def test_a_half_precision_target_trains_a_float32_draft(make_config, quiet):
    """Small updates of bfloat16 weights round to nothing."""
    config = make_config(target={"dtype": "bfloat16"}, loop={"steps": 1})
    train(config, quiet)
    assert {tensor.dtype for tensor in checkpoint(config).values()} == {torch.float32}
    shared = make_config(target={"dtype": "bfloat16"}, draft={"share_vocabulary": True}, loop={"output": config.loop.output + "2"})
    assert "give loop.precision=bfloat16, or target.dtype=float32" in refused(shared, quiet)
