"""A checkpoint that is not whole, or not of this run, is no checkpoint."""

import json
import shutil
from collections.abc import Callable

import pytest
import torch
from train_runs import newest

from pard2.errors import Pard2Error
from pard2.train.loop import train


def without(name: str) -> Callable[[dict, dict], object]:
    return lambda state, run: state[name].pop(next(iter(state[name])))


def nan(state: dict, run: dict) -> None:
    next(iter(state["weights"].values())).view(-1)[0] = float("nan")


DAMAGES: dict[str, Callable[[dict, dict], object]] = {
    "no optimizer": lambda state, run: state.update(optimizer={}),
    "part of an optimizer": without("optimizer"),
    "part of a parameter's state": lambda state, run: next(iter(state["optimizer"].values())).pop("exp_avg"),
    "a state of another shape": lambda state, run: next(iter(state["optimizer"].values())).update(exp_avg=torch.zeros(3)),
    "a count of many": lambda state, run: next(iter(state["optimizer"].values())).update(step=torch.zeros(3)),
    "an optimizer of a list": lambda state, run: state.update(optimizer=[]),
    "an optimizer of numbers": lambda state, run: state.update(optimizer=dict.fromkeys(state["optimizer"], 5)),
    "a weight that is no number": nan,
    "a weight less": without("weights"),
    "a weight more": lambda state, run: state["weights"].update(more=torch.zeros(2)),
    "weights of whole numbers": lambda state, run: state.update(weights={name: tensor.int() for name, tensor in state["weights"].items()}),
    "weights of numbers": lambda state, run: state.update(weights=dict.fromkeys(state["weights"], 1)),
    "weights of one number": lambda state, run: state.update(weights=5),
    "an average that nobody asked for": lambda state, run: state.update(average=dict(state["weights"])),
    "an average of a number": lambda state, run: state.update(average=5),
    "a step beyond the run": lambda state, run: run.update(step=10**9),
    "a step before it": lambda state, run: run.update(step=-5),
    "a step of another": lambda state, run: run.update(step=1),
    "a step in parts": lambda state, run: run.update(step=2.7),
    "an endless step": lambda state, run: run.update(step=float("inf")),
    "more skipped than taken": lambda state, run: run.update(skipped=3),
    "an acceptance that is no number": lambda state, run: run.update(best=float("nan")),
    "a section that is none": lambda state, run: run["config"].update(loop=5),
    "an origin that is none": lambda state, run: run.update(origin=5),
}


def test_a_damaged_checkpoint_is_gone_on_from(make_config, quiet, tmp_path):
    config = make_config(loop={"steps": 2})
    train(config, quiet)
    path = newest(config.loop.output)
    whole = tmp_path / "whole"
    shutil.copytree(path, whole)
    for name, damage in DAMAGES.items():
        state, run = torch.load(whole / "state.pt", weights_only=True), json.loads((whole / "run.json").read_text())
        damage(state, run)
        torch.save(state, path / "state.pt")
        (path / "run.json").write_text(json.dumps(run))
        with pytest.raises(Pard2Error, match="is no readable checkpoint; remove it|holds a damaged checkpoint"):
            train(config, quiet)
            pytest.fail(name)
    shutil.copytree(whole, path, dirs_exist_ok=True)
    train(config, quiet)


def test_a_checkpoint_under_another_steps_name_is_gone_on_from(make_config, quiet):
    config = make_config(loop={"steps": 2})
    train(config, quiet)
    path = newest(config.loop.output)
    path.rename(path.with_name("step-1000000000"))
    with pytest.raises(Pard2Error, match="step-1000000000 is no readable checkpoint"):
        train(config, quiet)
