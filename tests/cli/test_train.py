"""`pard2 train`: what a dry run prints and leaves alone, mistakes in one line, Ctrl-C."""

import json
import signal
from pathlib import Path

import pytest
import yaml

from pard2.train import loop


@pytest.fixture
def run_file(tmp_path: Path, target_directory: Path) -> Path:
    document = {
        "target": {"name": str(target_directory)},
        "draft": {"layers": 1},
        "data": {"train": [str(tmp_path / "train.jsonl")], "max_length": 100},
        "loop": {"output": str(tmp_path / "run"), "steps": 3, "device": "cpu"},
    }
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because of the tides"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"id": str(i), "messages": turns}) + "\n" for i in range(5)))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "run.yaml"


def test_a_dry_run_prints_no_run_or_begins_one(pard2, run_file, tmp_path):
    """Its standard output is the run with all defaults, itself a run."""
    result = pard2("train", run_file, "optimizer.lr=0.5", "--dry-run")
    assert result.code == 0 and not (tmp_path / "run").exists()
    assert yaml.safe_load(result.out)["optimizer"]["lr"] == 0.5
    (tmp_path / "again.yaml").write_text(result.out)
    assert pard2("train", tmp_path / "again.yaml", "--dry-run").out == result.out
    for said in ("parameters", "5 conversations", "3 steps of 8 rows", "memory", "disk", "GFLOP a step", "estimated"):
        assert said in " ".join(result.err.split())


def test_json_is_mixed_with_words(pard2, run_file, tmp_path):
    result = pard2("train", run_file, "loop.steps=7", "--dry-run", "--json")
    assert result.code == 0 and not (tmp_path / "run").exists()
    printed = json.loads(result.out)
    assert printed["config"]["loop"]["steps"] == 7 and printed["config"]["objective"]["draft_tokens"] == 16
    plan = printed["plan"]
    assert plan["steps"] == 7 and plan["data"]["conversations"] == 5
    assert plan["parameters"]["trained"] > plan["parameters"]["projection"] > 0
    assert plan["memory"]["total"] > plan["memory"]["target_weights"] > 0
    assert plan["disk"]["total"] > 0 and plan["flops_per_step"] > 0 and plan["seconds"] == pytest.approx(7 * plan["work"]["seconds"])


@pytest.mark.parametrize("method", ["pard", "ar"])
def test_a_dry_run_of_another_method_is_itself_a_run(pard2, run_file, tmp_path, method):
    result = pard2("train", run_file, f"method={method}", "--dry-run")
    assert result.code == 0 and {"pard": "PARD, 1 layer, K = 8", "ar": "ordinary small draft, 1 layer"}[method] in " ".join(result.err.split())
    (tmp_path / "again.yaml").write_text(result.out)
    assert pard2("train", tmp_path / "again.yaml", "--dry-run").out == result.out


@pytest.mark.parametrize("field", ["draft.scale=0.5", "features.cache=states", "objective.feature_drop=0"])
def test_a_field_of_another_method_writes_half_a_run(pard2, run_file, tmp_path, field):
    result = pard2("train", run_file, "method=pard", field)
    assert result.code == 2 and f"{field.split('=')[0]} does not fit method=pard" in result.error and "\n" not in result.error.strip()
    assert not (tmp_path / "run").exists()


def test_json_without_a_dry_run_is_ignored(pard2, run_file):
    assert "--json belongs to --dry-run" in pard2("train", run_file, "--json").error


def test_a_dry_run_needs_the_weights(pard2, run_file, target_directory, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in target_directory.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    assert pard2("train", run_file, f"target.name={bare}", "--dry-run").code == 0


@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_a_target_that_cannot_be_reached(pard2, run_file, extra):
    error = pard2("train", run_file, "target.name=org/no-such-model", "--dry-run", *extra).error
    assert "no model 'org/no-such-model'" in error and "HF_HUB_OFFLINE allows no download" in error


def test_what_a_run_would_refuse_passes_a_dry_run(pard2, run_file, tmp_path):
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"id": "s", "messages": [{"role": "system", "content": "only a rule"}]}\n')
    assert "data.evaluation: record 's' has no user message" in pard2("train", run_file, f"data.evaluation={held_out}", "--dry-run").error
    assert "draft.layers: 9 is not a layer" in pard2("train", run_file, "draft.layers=[9]", "--dry-run").error
    (tmp_path / "train.jsonl").write_text('{"id": "q", "messages": [{"role": "user", "content": "only a question"}]}\n')
    assert "record q: no token to predict" in pard2("train", run_file, "--dry-run").error
    assert "record q: no token to predict" in pard2("train", run_file).error
    (tmp_path / "train.jsonl").unlink()
    assert "train.jsonl" in pard2("train", run_file, "--dry-run").error


def test_a_mistyped_key_is_not_named(pard2, run_file, tmp_path):
    assert "did you mean" in pard2("train", run_file, "optimizer.warmup_step=1", "--dry-run").error
    assert "not of the form section.field=value" in pard2("train", run_file, "lr").error
    assert "cannot read" in pard2("train", tmp_path / "none.yaml").error


def test_ctrl_c_does_not_say_how_to_go_on(pard2, run_file, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    result = pard2("train", run_file)
    assert result.code == 130 and "the same command resumes" in result.err and "Traceback" not in result.err


def test_a_run_leaves_its_directory_on_standard_output(pard2, run_file, tmp_path):
    result = pard2("train", run_file, "loop.steps=1")
    assert result.code == 0, result
    assert Path(result.out.strip()) == tmp_path / "run" / "draft" and (tmp_path / "run" / "draft" / "config.json").is_file()
    assert "step 1/1 (100%)" in result.err and "3 steps" not in result.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_with_a_traceback_or_another_code(pard2, run_file, monkeypatch, number, code):
    def stopped(*_args):
        raise loop.Stopped(number, 7)

    monkeypatch.setattr(loop, "train", stopped)
    result = pard2("train", run_file)
    assert result.code == code and result.out == ""
    assert result.err.split() == f"{number.name}: stopped after step 7, of which a checkpoint is written; the same command goes on there".split()
