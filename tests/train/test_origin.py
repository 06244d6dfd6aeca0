"""A run goes on with what it began with, whatever has come to lie under the same names, and
counts what it leaves out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train_runs import CONVERSATIONS, newest, save_target, weights, write_records

from pard2.checkpoints.loading import load_target
from pard2.data.examples import load_examples
from pard2.data.prepared import Preparation, save_prepared
from pard2.data.sources import open_source
from pard2.errors import Pard2Error
from pard2.train.loop import train
from pard2.train.run_checkpoint import load_checkpoint
from tiny import tiny_model

OTHERS = [("a", "one two"), ("bb", "three four six"), ("c c", "six"), ("dd", "seven eight nine ten")]


class Run:
    """A finished run of two steps on models and data of its own, and another go at it."""

    def __init__(self, make_config: Callable, quiet: Any, folder: Path, **changes: dict) -> None:
        self.folder, self.quiet = folder, quiet
        self.model = save_target(folder / "model")
        self.data = write_records(folder / "train.jsonl", CONVERSATIONS)
        self.held_out = write_records(folder / "held-out.jsonl", CONVERSATIONS[:3])
        sections = {
            "target": {"name": str(self.model)},
            "data": {"train": [str(self.data)], "evaluation": str(self.held_out)},
            "loop": {"steps": 2, "evaluation_tokens": 2, "evaluation_prompts": 2},
        }
        self.config = make_config(**{name: fields | changes.get(name, {}) for name, fields in ({key: {} for key in changes} | sections).items()})
        if "prepared" in str(self.config.data.train):
            self.prepare(CONVERSATIONS)
        train(self.config, quiet)

    def prepare(self, conversations: list[tuple[str, str]]) -> None:
        target = load_target(str(self.model), "float32", "cpu", weight_format="plain")
        source = write_records(self.folder / "raw.jsonl", conversations)
        data = self.config.data
        examples = load_examples([str(source)], target.tokenizer, target.eos_token_ids, data.max_length, data.on_long)
        how = Preparation("model", 80, "cut")
        save_prepared(self.folder / "prepared", examples, [open_source(source)], target.tokenizer, target.eos_token_ids, how)

    def refused(self) -> str:
        before = weights(self.config.loop.output)
        with pytest.raises(Pard2Error) as caught:
            train(self.config, self.quiet)
        assert all(before[key].equal(now) for key, now in weights(self.config.loop.output).items())
        assert "\n" not in str(caught.value)
        return str(caught.value)


def edit_template(run: Run) -> None:
    template = run.model / "chat_template.jinja"
    template.write_text("!" + template.read_text())


CHANGES: dict[str, tuple[dict, Callable[[Run], object], str]] = {
    "an answer": ({}, lambda run: write_records(run.data, OTHERS), "other data: the conversations of data.train="),
    "a shorter file": ({}, lambda run: write_records(run.data, CONVERSATIONS[:3]), "other data: the conversations of data.train="),
    "the order": ({}, lambda run: write_records(run.data, CONVERSATIONS[::-1]), "other data: the conversations of data.train="),
    "prepared data": ({"data": {"train": ["prepared"]}}, lambda run: run.prepare(OTHERS), "other data: the conversations of data.train="),
    "the template": ({}, edit_template, "other data: the target's chat template changed"),
    "the weights": (
        {},
        lambda run: tiny_model("llama", 1, 3, vocab=load_target(str(run.model)).vocab_size, context=96).save_pretrained(run.model),
        "other models under the same names: the weights of target.name=",
    ),
    "held-out prompts": ({}, lambda run: write_records(run.held_out, OTHERS[1:]), "other held-out prompts: data.evaluation="),
}


@pytest.mark.parametrize(("sections", "change", "said"), CHANGES.values(), ids=CHANGES)
def test_something_else_under_the_same_name_is_trained_on(make_config, quiet, tmp_path, monkeypatch, sections, change, said):
    monkeypatch.chdir(tmp_path)
    run = Run(make_config, quiet, tmp_path, **sections)
    train(run.config, quiet)  # nothing has changed
    change(run)
    message = run.refused()
    assert message.startswith(f"{tmp_path / 'run'} holds a run with {said}") and "name another loop.output" in message


def test_what_a_draft_was_trained_with_is_not_written_down(make_config, quiet, tmp_path):
    run = Run(make_config, quiet, tmp_path)
    origins = [json.loads(path.read_text())["origin"] for path in tmp_path.glob("run/*/training.json")]
    assert origins == [json.loads((newest(run.config.loop.output) / "run.json").read_text())["origin"]] * 2
    assert set(origins[0]) == {"target", "template", "data", "evaluation"}


def test_evaluating_more_prompts_is_refused_or_compared_with_fewer(make_config, quiet, tmp_path):
    run = Run(make_config, quiet, tmp_path)
    more = run.config.model_copy(update={"loop": run.config.loop.model_copy(update={"evaluation_prompts": 3})})
    assert load_checkpoint(tmp_path / "run" / "checkpoints", run.config).progress.best >= 1
    assert load_checkpoint(tmp_path / "run" / "checkpoints", more).progress.best == 0
    train(more, quiet)


def test_a_cache_that_grows_changes_the_data_of_a_run(make_config, quiet, tmp_path):
    """And what the cache lacks is left out without a word."""
    cache = {"cache": str(tmp_path / "cache")}
    some = write_records(tmp_path / "some.jsonl", CONVERSATIONS[:3])
    train(make_config(features=cache, data={"train": [str(some)]}, loop={"steps": 1, "output": str(tmp_path / "first")}), quiet)
    skipping = make_config(features=cache | {"on_missing": "skip"}, loop={"steps": 2})
    train(skipping, quiet)
    assert "3 conversations" in quiet.file.getvalue() and "1 left out: not in the cache" in " ".join(quiet.file.getvalue().split())
    train(make_config(features=cache, loop={"steps": 1, "output": str(tmp_path / "second")}), quiet)
    with pytest.raises(Pard2Error, match="other data: .* or features.cache holds others of them"):
        train(skipping, quiet)


def test_a_run_in_epochs_is_taken_for_one_in_steps(make_config, quiet):
    config = make_config(loop={"steps": None, "epochs": 2.0})
    train(config, quiet)
    train(config, quiet)
    longer = config.model_copy(update={"loop": config.loop.model_copy(update={"epochs": 4.0})})
    with pytest.raises(Pard2Error, match=r"another number of steps, \d+ and not \d+ \(loop.epochs\)"):
        train(longer, quiet)


def test_a_checkpoint_of_an_older_version_is_refused_or_resumed_without_a_word(make_config, quiet):
    """It knows neither the newer fields nor what it was trained with."""
    config = make_config(loop={"steps": 2})
    train(config, quiet)
    path = newest(config.loop.output) / "run.json"
    run = json.loads(path.read_text())
    del run["origin"], run["config"]["optimizer"]["eps"], run["config"]["optimizer"]["momentum"], run["config"]["target"]["shape"]
    path.write_text(json.dumps(run))
    train(config, quiet)
    assert "all 2 steps are done; for more name another loop.output; its checkpoint is of an older version" in " ".join(quiet.file.getvalue().split())
