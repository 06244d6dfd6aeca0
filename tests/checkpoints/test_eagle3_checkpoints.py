"""EAGLE-3 drafts as files: written and read back, made by hand in the published layout, refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pard2.checkpoints.eagle3 import is_eagle3, load_eagle3, save_eagle3
from pard2.checkpoints.meta import meta_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target
from tiny import tiny_target
from tiny_eagle3 import tiny_eagle3

LAYOUTS = ("eagle3", "speculators")


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(layers=8)


def same(one: Eagle3Draft, other: Eagle3Draft) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    bits = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    return bits and one.spec == other.spec and torch.equal(one.token_ids, other.token_ids) and one.owns_embedding == other.owns_embedding


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"feature_norm": "joint", "norm_before_residual": True},
        {"feature_norm": "each", "norm_output": True, "draft_tokens": 3},
        {"own_embedding": True, "size": 61},
        {"target_layers": (2, 4, 5)},
        {"config": {"attention_bias": True, "mlp_bias": True, "bias": True}},
        {"template_arguments": [{"enable_thinking": False}], "made_for": {"pard2_target": "t", "pard2_target_samples": "00"}},
    ],
    ids=str,
)
def test_what_is_written_is_read_back_bit_for_bit(target, tmp_path, layout, how):
    draft = tiny_eagle3(target, **how)
    save_eagle3(draft, tmp_path / "d", layout=layout)
    again = load_draft(str(tmp_path / "d"), target, torch.float32)
    assert isinstance(again, Eagle3Draft) and same(draft, again)
    assert again.spec.made_for == draft.spec.made_for
    save_eagle3(again, tmp_path / "e", layout=layout)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "d" / file).read_bytes() == (tmp_path / "e" / file).read_bytes()


def test_save_draft_writes_the_plain_layout_in_the_dtype_asked_for(target, tmp_path):
    save_draft(tiny_eagle3(target), tmp_path / "d", torch.bfloat16, vocabulary=False)
    stored = load_file(tmp_path / "d" / "model.safetensors")
    assert stored["fc.weight"].dtype is torch.bfloat16 and stored["d2t"].dtype is torch.int64 and stored["t2d"].dtype is torch.bool
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    assert is_eagle3(config) and config["dtype"] == "bfloat16"
    draft = load_eagle3(str(tmp_path / "d"), target, torch.float32)
    assert draft.fc.weight.dtype is torch.float32 and torch.equal(draft.fc.weight, stored["fc.weight"].float())


def test_on_meta_no_weights_are_read(target, tmp_path):
    draft = tiny_eagle3(target, own_embedding=True)
    save_eagle3(draft, tmp_path / "d")
    on_meta = Target(tiny_target(layers=8).model.to("meta"))
    again = meta_draft(str(tmp_path / "d"), on_meta)
    assert again.device.type == "meta" and again.owns_embedding and again.spec == draft.spec
    (tmp_path / "d" / "model.safetensors").unlink()
    assert not meta_draft(str(tmp_path / "d"), on_meta).owns_embedding
