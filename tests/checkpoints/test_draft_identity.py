"""Which draft it is: the same for a copy, another for another training."""

import json
import shutil

import pytest
import torch

from pard2.checkpoints.draft_identity import draft_identity
from pard2.checkpoints.write import save_draft
from pard2.errors import Pard2Error
from tiny import tiny_draft, tiny_target


@pytest.fixture(scope="module")
def target():
    return tiny_target()


@pytest.fixture
def draft(target, tmp_path):
    save_draft(tiny_draft(target), tmp_path / "draft")
    return tmp_path / "draft"


def test_a_copy_with_a_card_beside_it_is_another_draft(draft, tmp_path):
    shutil.copytree(draft, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("# A draft\n")
    (tmp_path / "copy" / "training.json").write_text("{}")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(dict(reversed(config.items())) | {"transformers_version": "99"}))
    assert draft_identity(tmp_path / "copy") == draft_identity(draft)


def test_other_weights_or_another_config_are_the_same_draft(draft, target, tmp_path):
    trained = tiny_draft(target)
    with torch.no_grad():
        for parameter in trained.lm.model.layers.parameters():
            parameter += 0.01
    save_draft(trained, tmp_path / "trained")
    save_draft(tiny_draft(target, seed=2), tmp_path / "projection")  # which lies in a file of its own
    shutil.copytree(draft, tmp_path / "scaled")
    config = json.loads((draft / "config.json").read_text()) | {"pard2_scale": 0.5}
    (tmp_path / "scaled" / "config.json").write_text(json.dumps(config))
    assert len({draft_identity(tmp_path / name) for name in ("draft", "trained", "projection", "scaled")}) == 4


def test_a_large_file_is_read_from_end_to_end(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    values = bytearray(4 * 2**20)
    (tmp_path / "model.safetensors").write_bytes(values)
    before = draft_identity(tmp_path)
    values[-1] = 1
    (tmp_path / "model.safetensors").write_bytes(values)
    assert draft_identity(tmp_path) != before


def test_what_is_no_draft(tmp_path):
    with pytest.raises(Pard2Error, match=r"config.json"):
        draft_identity(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(Pard2Error, match=r"config.json is no JSON object"):
        draft_identity(tmp_path)
