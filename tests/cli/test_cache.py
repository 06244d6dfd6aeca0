"""`data cache`: the hidden states of a run's conversations, with a plan, and
going on where it was stopped."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pard2.checkpoints.loading import load_target
from pard2.data import filling
from pard2.data.corpus import Examples
from pard2.data.examples import load_examples
from pard2.data.features import online_states
from pard2.data.state_cache import StateCache
from pard2.models.target import Target

COUNT = 20
LAYERS = (-1, 1)


def write_run(path: Path, target: Path, **sections: dict) -> Path:
    data = path.with_suffix(".jsonl")
    with open(data, "w") as file:
        for number in range(COUNT):
            messages = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"{number} " * (1 + number % 5)}]
            file.write(json.dumps({"id": f"c{number}", "messages": messages}) + "\n")
    run = {
        "target": {"name": str(target)},
        "draft": {"layers": 1, "target_layers": [-1, 1]},
        "data": {"train": [str(data)], "max_length": 100},
        "features": {"cache": str(path.parent / "cache")},
        "loop": {"output": str(path.parent / "run"), "steps": 1, "device": "cpu"},
    }
    path.write_text(yaml.safe_dump({name: section | sections.get(name, {}) for name, section in run.items()}))
    return path


@pytest.fixture
def run(target_directory, tmp_path) -> Path:
    return write_run(tmp_path / "run.yaml", target_directory)


@pytest.fixture
def target(target_directory) -> Target:
    return load_target(str(target_directory), "float32", "cpu", weight_format="plain")


def examples_of(run: Path, target: Target) -> Examples:
    return load_examples([str(run.with_suffix(".jsonl"))], target.tokenizer, target.eos_token_ids, 100)


def test_it_says_its_plan_and_fills_the_cache_for_training(pard2, run, target, tmp_path):
    result = pard2("data", "cache", run)
    assert result.code == 0 and result.out == ""
    examples = examples_of(run, target)
    tokens = int(examples.lengths.sum())
    assert f"{COUNT} conversations of {tokens:,} tokens to run through" in result.err and ", 0 already there; 0 MB more in" in result.err
    assert "hidden states [-1, 1] in float32" in result.err and "for the other" in result.err and "by the pace of the first" in result.err
    assert result.err.index("to run through") < result.err.index("by the pace") < result.err.index(f"all {COUNT} conversations are there")
    cache = StateCache.open(tmp_path / "cache", target, LAYERS, "raise")
    assert cache.admit(examples) is examples
    for example, states in zip(examples, cache.read(examples), strict=True):
        assert states.features.equal(online_states(target, [example], LAYERS)[0].features)
    again = pard2("data", "cache", run)
    assert again.code == 0 and f"all {COUNT} conversations are there" in again.err and "to run through" not in again.err


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(pard2, run, target, tmp_path, monkeypatch):
    generate, count = StateCache.generate, 0

    def interrupted(self, example):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return generate(self, example)

    with monkeypatch.context() as patch:
        patch.setattr(StateCache, "generate", interrupted)
        result = pard2("data", "cache", run)
    assert result.code == 130 and "Traceback" not in result.err
    assert f"7 of {COUNT} conversations are in {tmp_path / 'cache'}; the same command goes on from there" in result.err
    again = pard2("data", "cache", run)
    assert again.code == 0 and f"{COUNT - 7} conversations of" in again.err and "7 already there" in again.err
    assert StateCache.open(tmp_path / "cache", target, LAYERS).missing(examples_of(run, target)) == []


def test_the_pace_leaves_the_slow_first_one_out(run, target, tmp_path, monkeypatch):
    """It pays for what happens once, and would make the estimate many times too long."""
    clock = iter([0.0, 100.0, *range(101, 200)])
    monkeypatch.setattr(filling.time, "perf_counter", lambda: float(next(clock)))
    examples = examples_of(run, target)
    with StateCache.open(tmp_path / "cache", target, LAYERS) as cache:
        done, seconds = filling.probe(cache, examples, range(COUNT))
    assert done == 1 + 6  # the seventh passes five seconds
    assert seconds == pytest.approx(7 / int(examples.lengths[1:7].sum()))


def test_what_does_not_fit_is_refused_before_it_starts(pard2, run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 10**10 - 5000, 5000))
    assert "more and its disk has 0 MB free; name a directory on another disk" in pard2("data", "cache", run).error
    assert not (tmp_path / "cache").exists()


def test_the_draft_says_which_hidden_states(pard2, run, draft_directory, target, tmp_path):
    """A run that goes on from a draft has that draft's layers, whatever the defaults are."""
    overrides = ("draft.layers=null", "draft.target_layers=null", f"draft.path={draft_directory}", "objective.draft_tokens=6")
    assert "hidden states [-1, -2] in float32" in pard2("data", "cache", run, *overrides).err
    assert StateCache.open(tmp_path / "cache", target, (-1, -2)).missing(examples_of(run, target)) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["features.cache=null"], "says not where the hidden states shall go; give features.cache=DIR"),
        (["features.cach=x"], "unknown key features.cach; did you mean cache?"),
        (["data.max_length=9"], "record c0 has"),
        (["draft.target_layers=[9]"], "target layer 9 is not a hidden state"),
        (["target.name=no/such-model"], "no model 'no/such-model'"),
    ],
)
def test_bad_input_is_one_line(pard2, run, tmp_path, overrides, message):
    assert message in pard2("data", "cache", run, *overrides).error
    assert not (tmp_path / "cache").exists()


def test_conversations_longer_than_the_target_reads(pard2, run, tmp_path):
    data = run.with_suffix(".jsonl")
    messages = [{"role": "user", "content": "long"}, {"role": "assistant", "content": "x" * 400}]
    data.write_text(json.dumps({"id": "long", "messages": messages}) + "\n")
    assert "the models read 160; set data.max_length=160 or lower" in pard2("data", "cache", run, "data.max_length=1000").error


def test_a_cache_of_another_run_is_refused(pard2, run, tmp_path):
    assert pard2("data", "cache", run).code == 0
    said = pard2("data", "cache", run, "draft.target_layers=[-2]").error
    assert said == (
        f"features.cache {tmp_path / 'cache'} was made by hidden states [-1, -3], and the draft wants [-2] (draft.target_layers); "
        "name another directory"
    )
    assert "all 20 conversations are there" in pard2("data", "cache", run, "draft.target_layers=[-1]").err  # a part of it
    assert "was made by a target in float32" in pard2("data", "cache", run, "target.dtype=bfloat16").error
