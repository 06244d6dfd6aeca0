"""Several processes train the draft that one would: the same losses, and the same
weights up to the order of sums."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from run_processes import Started
from train_runs import CONVERSATIONS, newest, weights, write_records

from pard2.config_file import load_config
from pard2.config_methods import without_unfit
from pard2.errors import Pard2Error
from pard2.train.loop import train
from pard2.train.processes import Processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # other interpreters import torch


def write_run(tmp_path: Path, target: Path, kind: str = "adamw", evaluated: bool = False, method: str = "pard2", **loop) -> Path:
    data = write_records(tmp_path / "data.jsonl", CONVERSATIONS)
    run = {
        "target": {"name": str(target)},
        "draft": {"layers": [0, 2], "target_layers": [-1, -2]},
        "data": {"train": [str(data)], "evaluation": str(data) if evaluated else None, "max_length": 80, "on_long": "cut"},
        "objective": {"draft_tokens": 4, "feature_drop": 0.3},
        "optimizer": {"kind": kind, "lr": 3e-3, "warmup_steps": 2, "ema": 0.5},
        "loop": {"steps": 4, "rows_per_step": 4, "save_every": 2, "seed": 3, "device": "cpu"} | loop,
    }
    without_unfit(method, run)["method"] = method
    path = tmp_path / f"{Path(loop['output']).name}.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def by_command(run: Path) -> str:
    """What a person's own command prints, in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    result = subprocess.run(
        [*launcher, "-m", "pard2", "train", str(run)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def by_agent(run: Path) -> str:
    return Started(run, 2).finish()


def metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def lines(output: Path) -> int:
    path = output / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


@pytest.mark.parametrize(("sharding", "kind", "run_two"), [("none", "muon", by_command), ("fsdp", "adamw", by_agent)])
def test_two_processes_train_what_one_does(target_directory, tmp_path, quiet, sharding, kind, run_two: Callable[[Path], str]):
    """The first pair is told no device: on a machine without GPUs that is the CPU for
    several processes as for one."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    device = None if sharding == "none" and not torch.cuda.is_available() else "cpu"
    evaluated = {"evaluated": True, "evaluate_every": 2, "evaluation_prompts": 2, "evaluation_tokens": 2}
    train(load_config(write_run(tmp_path, target_directory, kind, output=str(alone), **evaluated)), quiet)
    run = write_run(tmp_path, target_directory, kind, output=str(together), sharding=sharding, device=device, **evaluated)
    out = run_two(run)
    assert out.splitlines() == [str(together / "draft")]  # the main process speaks alone
    for one, two in zip(metrics(alone), metrics(together), strict=True):
        assert one["tokens"] == two["tokens"] and one["slots"] == two["slots"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4) and two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    ours, theirs = weights(str(alone)), weights(str(together))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-2, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert (together / "draft" / "training.json").is_file() and (together / "best" / "config.json").is_file()


@pytest.mark.parametrize(("method", "sharding"), [("pard", "none"), ("ar", "none"), ("ar", "fsdp"), ("eagle3", "none"), ("eagle3", "fsdp")])
def test_two_processes_train_what_one_does_by_another_method(target_directory, tmp_path, quiet, method, sharding):
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(load_config(write_run(tmp_path, target_directory, method=method, output=str(alone))), quiet)
    by_agent(write_run(tmp_path, target_directory, method=method, output=str(together), sharding=sharding))
    assert [line["loss"] for line in metrics(together)] == pytest.approx([line["loss"] for line in metrics(alone)], rel=1e-4)
    ours, theirs = weights(str(alone)), weights(str(together))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-2, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_sigkill_in_the_middle_loses_nothing_that_was_complete(target_directory, tmp_path, quiet):
    """Killed between checkpoints, once with half of a later checkpoint on disk, a run ends with the weights
    of one that was left alone."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(load_config(write_run(tmp_path, target_directory, output=str(whole), steps=24, rows_per_step=2)), quiet)
    run = write_run(tmp_path, target_directory, output=str(killed), steps=24, rows_per_step=2)
    started = Started(run, 1)
    started.wait_for(lambda: lines(killed) >= 5)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert newest(str(killed)).name < "step-00000024"
    Started(run, 1).finish()
    ours, theirs = weights(str(whole)), weights(str(killed))
    assert ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())
    assert [line["loss"] for line in metrics(whole)] == [line["loss"] for line in metrics(killed)]


def test_a_killed_worker_ends_the_run_and_the_next_one_goes_on(target_directory, tmp_path):
    output = tmp_path / "run"
    run = write_run(tmp_path, target_directory, output=str(output), steps=40, rows_per_step=2)
    started = Started(run, 2)
    started.wait_for(lambda: list((output / "checkpoints").glob("step-*")))
    os.kill(started.workers()[-1], signal.SIGKILL)
    code, _, _ = started.wait()
    assert code != 0
    step = int(newest(str(output)).name.removeprefix("step-"))
    assert step < 40
    Started(run, 1).finish()  # also: what two processes wrote, one reads
    assert metrics(output)[-1]["step"] == 40


def test_a_signal_to_one_process_ends_the_others_without_a_checkpoint(target_directory, tmp_path):
    output = tmp_path / "run"
    run = write_run(tmp_path, target_directory, output=str(output), steps=2000, save_every=2000, rows_per_step=2)
    started = Started(run, 2)
    started.wait_for(lambda: lines(output))
    os.kill(started.workers()[-1], signal.SIGTERM)  # the one that does not write
    code, _, err = started.wait()
    assert code != 0 and "SIGTERM: stopped after step" in err
    step = int(newest(str(output)).name.removeprefix("step-"))
    assert 0 < step < 2000 and metrics(output)[-1]["step"] == step


def test_what_cannot_be_shared_out_is_refused(monkeypatch):
    with pytest.raises(Pard2Error, match="loop.sharding=fsdp needs several processes; start them with accelerate launch or torchrun"):
        Processes("cpu", "fsdp")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Pard2Error, match="loop.device=cuda:1 names one device for 2 processes"):
        Processes("cuda:1", "none")
