"""Metrics on disk, in TensorBoard and at Weights & Biases: every step once, whatever was killed."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pard2.errors import Pard2Error
from pard2.train.metrics import MetricsLog, scalars, totals

EVALUATION = [
    {
        "method": "pard2-td",
        "acceptance_length": 2.5,
        "acceptance_length_interval": [2.0, 3.0],
        "accepted_by_position": [0.9, 0.6],
        "speedup": 1.8,
        "speedup_interval": None,
        "prompts": 8,
    },
    {"method": "pard2-ti", "acceptance_length": 2.0, "accepted_by_position": [0.8, 0.2], "speedup": None},
]


def record(step: int, **more: Any) -> dict:
    return {"step": step, "loss": 3.0 - step, "accuracy_by_depth": [0.5, 0.25], "tokens": 7} | more


def write(output: Path, done: int, *records: dict, **options: Any) -> None:
    with MetricsLog(output, options.get("tensorboard", False), options.get("wandb"), {"seed": 1}) as log:
        log.forget_after(done)
        for one in records:
            log.write(one)


def on_disk(output: Path) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (output / "metrics.jsonl").read_text().splitlines()]


# --- the file -------------------------------------------------------------------------------------


def test_the_sum_of_some_steps_is_told_as_that_of_all(tmp_path):
    full = [record(step, answer_tokens=4, slots=20, seconds=1.26) for step in (1, 2, 3)]
    write(tmp_path, 0, *full[:2])
    sums = {"tokens": 21, "answer_tokens": 12, "slots": 60, "seconds": 3.8}
    assert totals(tmp_path / "metrics.jsonl", 3, full[2]) == sums
    assert totals(tmp_path / "metrics.jsonl", 4, full[2]) == dict.fromkeys(sums)  # the first steps stand elsewhere
    del full[2]["answer_tokens"]
    assert totals(tmp_path / "metrics.jsonl", 3, full[2]) == sums | {"answer_tokens": None}
    assert totals(tmp_path / "none", 3, full[2])["seconds"] is None


def test_figures_that_are_no_numbers_make_a_line_that_is_no_json(tmp_path):
    write(tmp_path, 0, record(1, loss=math.nan, overlap_by_depth=[math.inf, 0.5], evaluation=[{"method": "pard2-td", "speedup": -math.inf}]))
    (line,) = on_disk(tmp_path)
    assert line["loss"] is None and line["overlap_by_depth"] == [None, 0.5] and line["evaluation"][0]["speedup"] is None


def test_a_step_is_on_disk_only_when_the_run_ends(tmp_path):
    with MetricsLog(tmp_path, False, None, {}) as log:
        log.forget_after(0)
        log.write(record(1))
        assert on_disk(tmp_path) == [record(1)]


@pytest.mark.parametrize("torn", ["", '{"step": 4, "lo'])
@pytest.mark.parametrize("done", [0, 2, 3])
def test_a_resumed_run_tells_steps_twice_or_loses_one(tmp_path, torn, done):
    write(tmp_path, 0, record(1), record(2), record(3))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    write(tmp_path, done)  # killed again before it told of a step
    assert [line["step"] for line in on_disk(tmp_path)] == [*range(1, done + 1)]
    write(tmp_path, done, *(record(step, again=True) for step in range(done + 1, 5)))
    assert [line["step"] for line in on_disk(tmp_path)] == [1, 2, 3, 4]
    assert ["again" in line for line in on_disk(tmp_path)] == [step > done for step in range(1, 5)]


def test_a_file_of_something_else_is_cut(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("precious\n")
    with pytest.raises(Pard2Error, match="metrics.jsonl:1 is no step's metrics; move the file away, or name another loop.output"):
        write(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == "precious\n"


def test_an_output_that_cannot_be_written(tmp_path):
    with pytest.raises(Pard2Error, match="cannot write .*metrics.jsonl: No such file or directory"):
        MetricsLog(tmp_path / "none", False, None, {})


def test_a_full_disk_is_a_traceback(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path, False, None, {})
    with pytest.raises(Pard2Error, match="cannot write .*: No space left on device; the last checkpoint is whole"), log:
        log.write(record(1))


def test_nested_values_are_left_out_or_misnamed():
    assert dict(scalars(record(1, evaluation=EVALUATION, skipped=True))) == {
        "step": 1,
        "loss": 2.0,
        "accuracy/depth_0": 0.5,
        "accuracy/depth_1": 0.25,
        "tokens": 7,
        "evaluation/pard2-td/acceptance_length": 2.5,
        "evaluation/pard2-td/accepted/position_0": 0.9,
        "evaluation/pard2-td/accepted/position_1": 0.6,
        "evaluation/pard2-td/speedup": 1.8,
        "evaluation/pard2-td/prompts": 8,
        "evaluation/pard2-ti/acceptance_length": 2.0,
        "evaluation/pard2-ti/accepted/position_0": 0.8,
        "evaluation/pard2-ti/accepted/position_1": 0.2,
    }


# --- TensorBoard ----------------------------------------------------------------------------------


def curves(output: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard shows them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(output / "tensorboard"))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_lacks_a_curve_or_shows_steps_twice(tmp_path):
    pytest.importorskip("tensorboard")
    write(tmp_path, 0, record(1), record(2, evaluation=EVALUATION), record(3), tensorboard=True)
    assert curves(tmp_path)["evaluation/pard2-td/accepted/position_1"] == [(2, pytest.approx(0.6))]
    write(tmp_path, 1, record(2, loss=9.0), record(3, loss=8.0), tensorboard=True)
    found = curves(tmp_path)
    assert found["loss"] == [(1, 2.0), (2, 9.0), (3, 8.0)]
    assert found["accuracy/depth_1"] == [(1, 0.25), (2, 0.25), (3, 0.25)]
    assert "step" not in found


def test_tensorboard_is_a_step_behind_when_killed(tmp_path):
    pytest.importorskip("tensorboard")
    with MetricsLog(tmp_path, True, None, {}) as log:
        log.forget_after(0)
        for step in (1, 2, 3):  # the first is on disk at once in any case
            log.write(record(step))
        assert curves(tmp_path)["loss"] == [(1, 2.0), (2, 1.0), (3, 0.0)]


def test_a_missing_tensorboard_is_found_after_the_models_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Pard2Error, match="log.tensorboard needs the package tensorboard: pip install 'pard2\\[train\\]'"):
        MetricsLog(tmp_path, True, None, {})


# --- Weights & Biases -----------------------------------------------------------------------------


class FakeRun:
    def __init__(self, run_id: str) -> None:
        self.id, self.logged, self.finished, self.axes = run_id, [], False, []

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def finish(self) -> None:
        self.finished = True


class FakeWandb(ModuleType):
    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.asked: list[dict] = []
        self.runs: list[FakeRun] = []

    def init(self, **asked: Any) -> FakeRun:
        self.asked.append(asked)
        self.runs.append(FakeRun(asked["id"] or f"new{len(self.runs)}"))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_resumed_run_is_a_new_one_at_wandb(tmp_path, wandb):
    write(tmp_path, 0, record(1), record(2, evaluation=EVALUATION), wandb="drafts")
    write(tmp_path, 1, record(2), wandb="drafts")
    first, second = wandb.asked
    assert first == {"project": "drafts", "dir": str(tmp_path), "config": {"seed": 1}, "id": None, "resume": "allow"}
    assert second == first | {"id": "new0"}
    assert [values["step"] for run in wandb.runs for values in run.logged] == [1, 2, 2]
    assert wandb.runs[0].logged[1]["evaluation/pard2-td/speedup"] == 1.8
    assert all(run.finished and run.axes == [("*", "step")] for run in wandb.runs)


def test_another_output_takes_over_the_run(tmp_path, wandb):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, 0, record(1), wandb="drafts")
    assert [run.id for run in wandb.runs] == ["new0", "new1"]


def test_a_project_that_cannot_be_reached_is_a_traceback(tmp_path, wandb, monkeypatch):
    def refuse(**_: Any) -> None:
        raise FakeWandb.Error("no API key\nsee the documentation")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(Pard2Error, match="^log.wandb=drafts: no API key; run `wandb login`, or leave log.wandb out$"):
        write(tmp_path, 0, wandb="drafts")


def test_a_missing_wandb_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Pard2Error, match="log.wandb needs the package wandb: pip install wandb"):
        MetricsLog(tmp_path, False, "drafts", {})
