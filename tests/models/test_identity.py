"""Whose features a draft learned, and one note where its target is another model of the same shape."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pard2.checkpoints import loading
from pard2.checkpoints.inspection import fit, inspect_draft
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.pruning import cut_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.errors import Pard2Error, Pard2Warning
from pard2.models.identity import warn_of_another
from pard2.models.target import Target
from tiny import MASK, tiny_draft, tiny_model, tiny_target


@torch.no_grad()
def rotated(model: PreTrainedModel) -> PreTrainedModel:
    """The same function with other hidden states: norms folded into what reads them, the residual stream
    times an orthogonal matrix."""
    torch.manual_seed(9)
    q, _ = torch.linalg.qr(torch.randn(32, 32))
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, readers in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.copy_(reader.weight * norm.weight @ q)
            norm.weight.fill_(1)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.copy_(q.T @ writer.weight)
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ q)
    model.lm_head.weight.copy_(model.lm_head.weight * model.model.norm.weight @ q)
    model.model.norm.weight.fill_(1)
    return model


@torch.no_grad()
def tuned(model: PreTrainedModel, *names: str) -> PreTrainedModel:
    """3 % of noise on the weights whose names hold one of these, on all without."""
    torch.manual_seed(4)
    for name, weight in model.named_parameters():
        if any(part in name for part in names or ("",)):
            weight.mul_(1 + 0.03 * torch.randn_like(weight))
    return model


def notes(call: Callable[..., object], *arguments: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments)
    return [str(one.message) for one in caught if one.category is Pard2Warning]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A draft made of the tiny target."""
    save_draft(tiny_draft(tiny_target()), tmp_path / "draft")
    return tmp_path / "draft"


def test_a_rotated_model_is_the_same_function():
    """Or it would be no test of what features alone tell."""
    ids = torch.tensor([[5, 9, 2, 7, 7, 1]])
    torch.testing.assert_close(rotated(tiny_model())(ids).logits, tiny_model()(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "noted"),
    [
        (tiny_model, False),
        (lambda: tiny_model().bfloat16(), False),
        (lambda: tiny_model().half(), False),
        (lambda: tiny_model().bfloat16().float(), False),  # stored in half precision, loaded in whole
        (lambda: rotated(tiny_model()), True),
        (lambda: tuned(tiny_model()), True),
        (lambda: tuned(tiny_model(), "q_proj", "v_proj"), True),  # as merged adapters leave it
        (lambda: tiny_model(seed=1), True),
    ],
    ids=["itself", "bfloat16", "float16", "rounded", "rotated", "tuned", "adapted", "foreign"],
)
@pytest.mark.parametrize("weight_format", ["plain", "fbgemm"])
def test_another_target_is_noted_once_and_the_same_one_never(directory, make, noted, weight_format):
    if weight_format == "fbgemm" and "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no FBGEMM")
    target = Target(make(), name="mine", weight_format=weight_format)
    said = notes(load_draft, str(directory), target, torch.float32)
    assert len(said) == noted
    assert not noted or "was made for another target ('tiny-llama', whose weights are not those of 'mine')" in said[0]
    assert notes(load_draft, str(directory), target, torch.float32, False) == []  # no features, no note


def test_a_draft_that_says_nothing_of_its_target_is_taken_as_it_is(directory):
    """Those of older versions and of other tools."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in config.items() if not key.startswith("pard2_target_samples") and key != "pard2_target"}))
    assert notes(load_draft, str(directory), tiny_target(seed=1), torch.float32) == []
    assert inspect_draft(directory).target is None


def test_a_shared_vocabulary_is_another_targets_in_either_mode(tmp_path):
    save_draft(cut_draft(tiny_target(), [0], MASK, 4, (-1,), shared_vocabulary=True), tmp_path / "draft", vocabulary=False)
    for mode in (True, False):
        assert len(notes(load_draft, str(tmp_path / "draft"), tiny_target(seed=1), torch.float32, mode)) == 1, mode


def test_a_damaged_identity_is_anothers_or_one_line(directory):
    file = directory / "config.json"
    whole = json.loads(file.read_text())
    for samples in ("***", "abcd", "abc", whole["pard2_target_samples"][:-1] + "x", whole["pard2_target_samples"][:-2]):
        file.write_text(json.dumps(whole | {"pard2_target_samples": samples}))
        assert len(notes(load_draft, str(directory), tiny_target(), torch.float32)) == 1, samples
    for key in ("pard2_target", "pard2_target_samples"):
        file.write_text(json.dumps(whole | {key: [1]}))
        with pytest.raises(Pard2Error, match=f"config key `{key}` has the wrong type"):
            load_draft(str(directory), tiny_target(), torch.float32)


def test_info_compares_with_the_stored_weights_and_tells_the_name(directory, tmp_path, monkeypatch):
    """Without loading them, and without the name of a directory that nobody else has."""
    for name, model in (("same", tiny_model()), ("other", tuned(tiny_model())), ("half", tiny_model().bfloat16())):
        model.save_pretrained(tmp_path / name)
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    tied = load_target(str(tmp_path / "tied"), "float32", "cpu")
    save_draft(tiny_draft(tied), tmp_path / "tied-draft")
    assert notes(fit, tmp_path / "tied-draft", str(tmp_path / "tied"), {"pard2-td": True}) == []
    assert len(notes(fit, tmp_path / "tied-draft", str(tmp_path / "same"), {"pard2-td": True})) == 1
    monkeypatch.setattr(loading, "load_causal_lm", None)  # by which a target is loaded; `read` has the name for itself
    for name, count in (("same", 0), ("other", 1), ("half", 0)):
        assert len(notes(fit, directory, str(tmp_path / name), {"pard2-td": True, "pard2-ti": False})) == count, name
    assert inspect_draft(directory).target == "tiny-llama"
    save_draft(cut_draft(Target(tiny_model(), name=str(tmp_path / "same")), [0], MASK, 4, (-1,)), tmp_path / "cut")
    assert inspect_draft(tmp_path / "cut").target == "same"


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "qwen3_moe", "opt"])
def test_any_architecture_has_an_identity_that_survives_the_disk(architecture, tmp_path):
    target = tiny_target(architecture=architecture)
    target.model.save_pretrained(tmp_path / "model")
    again = load_target(str(tmp_path / "model"), "bfloat16", "cpu")
    assert notes(warn_of_another, "d", target.identity, again.identity) == []
    assert len(notes(warn_of_another, "d", target.identity, tiny_target(seed=1, architecture=architecture).identity)) == 1
