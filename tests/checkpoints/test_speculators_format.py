"""EAGLE-3 drafts in speculators' layout: what is written, what others wrote, and between the two layouts."""

import json

import pytest
import torch
from eagle3_files import change_config, config_of, tensors_of
from test_eagle3_checkpoints import NORMS, QWEN, H, by_hand, same

from pard2.checkpoints.eagle3 import is_eagle3, save_eagle3
from pard2.errors import Pard2Error, Pard2Warning
from pard2.export.engine_form import engine_form
from pard2.models.target import Target
from tiny import tiny_target
from tiny_eagle3 import read, tiny_eagle3


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(layers=8)


def test_every_key_of_the_layout_is_spelt_out(target, tmp_path):
    save_eagle3(tiny_eagle3(target, made_for={"pard2_target": "org/target", "pard2_target_samples": ""}), tmp_path / "d", layout="speculators")
    config = config_of(tmp_path / "d")
    layer = config.pop("transformer_layer_config")
    assert is_eagle3(config) and config == {
        "architectures": ["Eagle3Speculator"],
        "model_type": "speculators",
        "speculators_model_type": "eagle3",
        "speculators_version": config["speculators_version"],
        "dtype": "float32",
        "draft_vocab_size": 31,
        "target_hidden_size": 32,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "eagle_aux_hidden_state_layer_ids": [1, 8],
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1, "accept_tolerance": 0.0}],
            "verifier": {"name_or_path": "org/target", "architectures": []},
        },
        "pard2_draft_tokens": 5,
        "pard2_target": "org/target",
        "pard2_target_samples": "",
    }
    assert layer["architectures"] == ["LlamaForCausalLM"] and layer["model_type"] == "llama" and layer["num_hidden_layers"] == 1
    tensors = tensors_of(tmp_path / "d")
    assert "layers.0.self_attn.q_proj.weight" in tensors and not [name for name in tensors if "midlayer" in name]
    assert {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d"} < tensors.keys()


def foreign(directory, **changes) -> None:
    """The checkpoint made by hand, as speculators would have written it: without what is its default."""
    by_hand(directory, layer="layers.0.")
    plain = config_of(directory)
    names = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    names += ("rms_norm_eps", "hidden_act", "vocab_size", "max_position_embeddings")
    layer = {name: plain[name] for name in names} | {"rope_parameters": {"rope_type": "default", "rope_theta": plain["rope_theta"]}}
    config = {
        "architectures": ["Eagle3DraftModel"],
        "model_type": "speculators",
        "speculators_model_type": "eagle3",
        "draft_vocab_size": plain["draft_vocab_size"],
        "norm_before_residual": False,
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": None,
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "other", "speculative_tokens": 2}, {"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": "org/target", "architectures": ["LlamaForCausalLM"]},
        },
    }
    (directory / "config.json").write_text(json.dumps(config | changes))


def test_one_of_other_hands_is_read(target, tmp_path, recwarn):
    by_hand(tmp_path / "plain")
    foreign(tmp_path / "d")
    draft, plain = read(tmp_path / "d", target), read(tmp_path / "plain", target)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in draft.state_dict().items())
    assert torch.equal(draft.rotary_emb.inv_freq, plain.rotary_emb.inv_freq)
    assert draft.spec.target_layers == (2, 4, 5) and draft.spec.target_hidden_size == H and draft.spec.draft_tokens == 3
    assert draft.spec.made_for == {"pard2_target": "org/target", "pard2_target_samples": ""}
    assert not recwarn.list  # of a target whose name alone is known, nothing is said


def test_a_missing_norm_before_residual_is_false_and_told(target, tmp_path):
    foreign(tmp_path / "d", norm_before_residual=None)
    with pytest.warns(Pard2Warning, match="false is assumed, as speculators reads it; vLLM reads true"):
        assert read(tmp_path / "d", target).spec.norm_before_residual is False


def test_a_layer_of_no_named_kind_is_a_qwen_3s(target, tmp_path):
    foreign(tmp_path / "d")
    layer = config_of(tmp_path / "d")["transformer_layer_config"]
    change_config(tmp_path / "d", transformer_layer_config={key: value for key, value in layer.items() if key != "model_type"})
    with pytest.raises(Pard2Error, match=r"lacks midlayer.self_attn.k_norm.weight"):
        read(tmp_path / "d", target)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"transformer_layer_config": None}, "lacks `transformer_layer_config`"),
        ({"transformer_layer_config": []}, "`transformer_layer_config` has the wrong type"),
        ({"speculators_config": "eagle3"}, "`speculators_config` has the wrong type"),
        ({"draft_vocab_size": 62}, "larger than the target's of 61"),
        ({"speculators_config": {"proposal_methods": [{"speculative_tokens": "3"}]}}, "`speculative_tokens` has the wrong type"),
        ({"speculators_config": {"verifier": 3, "proposal_methods": 4}}, ""),
    ],
    ids=str,
)
def test_a_damaged_config_is_one_line(target, tmp_path, changes, line):
    foreign(tmp_path / "d", **changes)
    if not line:  # parts that nothing needs
        assert read(tmp_path / "d", target).spec.made_for is None
        return
    with pytest.raises(Pard2Error) as told:
        read(tmp_path / "d", target)
    assert line in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("how", [*NORMS, {"own_embedding": True}, {"config": QWEN}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_there_and_back_is_bit_for_bit(target, tmp_path, how, dtype):
    """Also of one whose norms are float32 beside bfloat16 matrices."""
    draft = tiny_eagle3(target, **how).to(dtype)
    draft.norm.float()
    save_eagle3(draft, tmp_path / "a")
    for here, there, to in (("a", "b", "speculators"), ("b", "c", "vllm"), ("c", "d", "speculators")):
        engine_form(str(tmp_path / here), to, None).write(tmp_path / there)
    for one, other in (("a", "c"), ("b", "d")):
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / one / file).read_bytes() == (tmp_path / other / file).read_bytes()
    assert same(read(tmp_path / "b", target), read(tmp_path / "a", target))
    layer, plain = config_of(tmp_path / "b"), config_of(tmp_path / "a")
    assert layer["speculators_model_type"] == "eagle3" and "speculators_model_type" not in plain
