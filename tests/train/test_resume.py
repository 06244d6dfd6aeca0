"""A killed run goes on as if nothing had happened, or says why it cannot."""

import json
from pathlib import Path

import pytest
import torch
from train_runs import CONVERSATIONS, assert_bit_for_bit, interrupt, newest, save_target, weights, write_records

from pard2.errors import Pard2Error
from pard2.train.loop import train


def metrics(output: str) -> list[dict]:
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


SHARED = {"share_vocabulary": True, "standardise_features": True, "vocabulary_size": 24}


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize(("at_step", "draft", "kind"), [(1, {}, "adamw"), (2, SHARED, "muon"), (5, {}, "muon")])
def test_a_killed_run_ends_with_the_same_weights(make_config, quiet, tmp_path, monkeypatch, at_step, draft, kind, evaluated):
    """Killed before the first checkpoint, right after one, and with steps behind it that are lost; with
    evaluations, which the resumed run does not repeat.
    """
    data = {"evaluation": str(write_records(tmp_path / "held-out.jsonl", CONVERSATIONS[:1]))} if evaluated else {}
    loop = {"evaluate_every": 2, "evaluation_tokens": 2}
    whole, killed = (
        make_config(draft=draft, data=data, optimizer={"kind": kind}, loop=loop | {"output": str(tmp_path / name)}) for name in ("whole", "killed")
    )
    train(whole, quiet)
    with monkeypatch.context() as patch:
        interrupt(patch, at_step, RuntimeError)
        with pytest.raises(RuntimeError, match="killed"):
            train(killed, quiet)
    train(killed, quiet)
    assert_bit_for_bit(whole.loop.output, killed.loop.output)
    # Steps that were taken twice are told once.
    assert [m["step"] for m in metrics(killed.loop.output)] == [1, 2, 3, 4, 5, 6]
    assert [m["loss"] for m in metrics(killed.loop.output)] == [m["loss"] for m in metrics(whole.loop.output)]


def test_dropout_is_resumed_too(make_config, quiet, tmp_path, monkeypatch):
    """Dropout draws from the global generator, whose state no checkpoint holds."""
    target = {"name": str(save_target(tmp_path / "gpt2", "gpt2"))}
    config = json.loads((tmp_path / "gpt2" / "config.json").read_text()) | {"resid_pdrop": 0.2}
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config))
    whole, killed = (make_config(target=target, loop={"output": str(tmp_path / name)}) for name in ("whole", "killed"))
    train(whole, quiet)
    with monkeypatch.context() as patch:
        interrupt(patch, 3, RuntimeError)
        with pytest.raises(RuntimeError):
            train(killed, quiet)
    train(killed, quiet)
    assert_bit_for_bit(whole.loop.output, killed.loop.output)


def test_the_dropout_test_drops(make_config, quiet, tmp_path):
    """Without this, the test above would pass for a model that is never in training mode."""
    save_target(tmp_path / "gpt2", "gpt2")
    losses = []
    for p in (0.0, 0.2):
        config = json.loads((tmp_path / "gpt2" / "config.json").read_text()) | {"resid_pdrop": p}
        (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config))
        run = make_config(target={"name": str(tmp_path / "gpt2")}, loop={"output": str(tmp_path / f"p{p}"), "steps": 1})
        train(run, quiet)
        losses.append(metrics(run.loop.output)[0]["loss"])
    assert losses[0] != losses[1]


def test_ctrl_c_leaves_the_last_checkpoint_whole(make_config, quiet, monkeypatch):
    config = make_config()
    interrupt(monkeypatch, 3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config, quiet)
    saved = json.loads((newest(config.loop.output) / "run.json").read_text())
    assert saved["step"] == 2 and weights(config.loop.output)
    assert [p.name for p in newest(config.loop.output).parent.iterdir()] == ["step-00000002"]


def test_ctrl_c_while_saving_leaves_the_checkpoint_before(make_config, quiet, monkeypatch):
    config, real, calls = make_config(), torch.save, []

    def save(state, path):
        real(state, path)
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet)
    assert json.loads((newest(config.loop.output) / "run.json").read_text())["step"] == 2
    train(config, quiet)
    assert [m["step"] for m in metrics(config.loop.output)] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_not_trained_again(make_config, quiet):
    config = make_config()
    train(config, quiet)
    before = weights(config.loop.output)
    train(config, quiet)
    assert all(before[key].equal(now) for key, now in weights(config.loop.output).items())
    assert len(metrics(config.loop.output)) == 6


@pytest.mark.parametrize(
    ("section", "field", "value"), [("optimizer", "lr", 1e-3), ("loop", "steps", 7), ("objective", "ce_alpha", 0.2), ("draft", "layers", [0, 1])]
)
def test_another_configuration_in_the_same_directory_is_refused(make_config, quiet, section, field, value):
    train(make_config(loop={"steps": 2}), quiet)
    changed = make_config(**{"loop": {"steps": 2}, section: {"steps": 2} | {field: value} if section == "loop" else {field: value}})
    with pytest.raises(Pard2Error, match=rf"another {section}.{field} \(.*go on with that run by .*--resume .*name another loop.output"):
        train(changed, quiet)
    assert len(metrics(changed.loop.output)) == 2


def test_how_often_to_save_may_change_when_resuming(make_config, quiet, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 3, RuntimeError)
        with pytest.raises(RuntimeError):
            train(make_config(), quiet)
    train(make_config(loop={"save_every": 3}), quiet)


@pytest.mark.parametrize(
    ("file", "content"),
    [("state.pt", b"garbage"), ("state.pt", b""), ("run.json", b"{}"), ("run.json", b"{"), ("run.json", b"[]"), ("state.pt", None)],
)
def test_a_damaged_checkpoint_is_one_clear_line(make_config, quiet, file, content):
    config = make_config(loop={"steps": 2})
    train(config, quiet)
    path = newest(config.loop.output) / file
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(Pard2Error, match="is no readable checkpoint; remove it"):
        train(config, quiet)


def test_a_target_replaced_under_its_name_is_refused(make_config, quiet, tmp_path):
    name = {"name": str(save_target(tmp_path / "model"))}
    train(make_config(target=name, loop={"steps": 2}), quiet)
    save_target(tmp_path / "model", hidden=16)
    with pytest.raises(Pard2Error, match="other models under the same names"):
        train(make_config(target=name, loop={"steps": 2}), quiet)
