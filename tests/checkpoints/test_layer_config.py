"""Drafts cut out of targets whose layers differ: the chosen layers themselves, or one line of refusal."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pard2.checkpoints import pruning
from pard2.checkpoints.layer_config import config_of_layers
from pard2.checkpoints.pruning import cut_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.errors import Pard2Error
from pard2.models.target import Target
from tiny import MASK

IDS = torch.tensor([[5, 9, 2, 7, 7, 1, 30, 12, 44, 3, 8, 21]])  # longer than the windows
CHOICES = ([1, 3, 5], [0, 5], [2, 3])

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4}
_LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
_GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}
_HEAD, _WINDOW = {"head_dim": 8}, {"sliding_window": 4}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 3} | _HEAD | _WINDOW
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 61}

RIGHT = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2} | _WINDOW,
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2} | _WINDOW | _HEAD,
    "gemma2": _HEAD | _WINDOW,
    "gemma3_text": _HEAD | _WINDOW,
    "olmo3": _WINDOW,
    "cohere2": _WINDOW,
    "exaone4": _WINDOW,
    "smollm3": {"no_rope_layers": [1, 1, 1, 0, 1, 1]},
    "smollm3 by interval": {"no_rope_layer_interval": 3},
    "gpt_oss": _EXPERTS | _HEAD | _WINDOW,
    "mellum": _EXPERTS | _HEAD,
    "cohere2_moe": _EXPERTS | _HEAD,
    "glm4_moe": _EXPERTS | _HEAD | _GROUPS,
    "glm4_moe_lite": _EXPERTS | _LATENT | _GROUPS,
    "exaone_moe": _EXPERTS | _HEAD,
    "deepseek_v2": _EXPERTS | _LATENT | _GROUPS,
    "deepseek_v3": _EXPERTS | _LATENT | _GROUPS,
    "qwen2_moe": _EXPERTS | {"decoder_sparse_step": 2, "shared_expert_intermediate_size": 16},
    "qwen3_moe": _EXPERTS | _HEAD | {"mlp_only_layers": [1, 4]},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 2},
    "afmoe": _EXPERTS | _HEAD | _WINDOW | {"num_dense_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]], "num_layers": 6, "num_heads": 4, "window_size": 4},
    "gemma4_text": _MIXED | _PER_LAYER | {"hidden_size_per_layer_input": 0, "global_head_dim": 16},
}
_GEMMA3N = _MIXED | _PER_LAYER | {"laurel_rank": 4, "altup_num_inputs": 2}
_GPT2 = {"n_embd": 32, "n_layer": 6, "n_head": 4, "attn_pdrop": 0.0}
REFUSED = {
    "gemma3n_text": (_GEMMA3N | {"num_kv_shared_layers": 2}, "by num_kv_shared_layers = 2 in its config"),
    "gemma3n_text of inputs": (_GEMMA3N | {"num_kv_shared_layers": 0}, "by hidden_size_per_layer_input = 8 in its config"),
    "gemma4_text": (_MIXED | _PER_LAYER | {"num_kv_shared_layers": 2}, "by num_kv_shared_layers = 2 in its config"),
    "gemma4_text that ends in a window": (
        RIGHT["gemma4_text"] | {"layer_types": ["full_attention", "sliding_attention"] * 2 + ["sliding_attention", "full_attention"]},
        "their config must say layer_types = .*, 'sliding_attention'., and says .*, 'full_attention'.; name others",
    ),
    "ernie4_5_moe": (
        RIGHT["ernie4_5_moe"] | {"moe_layer_start_index": 0, "moe_layer_interval": 2},
        "no moe_layer_interval says where their experts are",
    ),
    "gpt2": (_GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "layer 1 of 'tiny-gpt2'.* its attn.scaling would change from 0.17.* to 0.35"),
}


def target_of(kind: str, extra: dict) -> Target:
    kind = kind.split()[0]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind in ("gpt2", "gpt_neo"):
        shape = {"hidden_size": 32}
    tokens = {"vocab_size": 61, "eos_token_id": None, "bos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(shape | tokens | {"max_position_embeddings": 64, "initializer_range": 0.3} | extra))
    return Target(AutoModelForCausalLM.from_config(config, dtype=torch.float32), name=f"tiny-{kind}")


def logits_without_the_others(target: Target, layers: list[int]) -> torch.Tensor:
    """Of the target while its other layers are taken out; those that are left keep what they are."""
    model, config = target.model, target.model.config
    parent, _, name = target.blocks_name.rpartition(".")
    around, blocks = model.get_submodule(parent), model.get_submodule(target.blocks_name)
    kinds = config.layer_types if hasattr(config, "layer_types") else None
    try:
        setattr(around, name, nn.ModuleList(blocks[layer] for layer in layers))
        if kinds is not None:  # by which most models choose the mask of the layer at each index
            config.layer_types = [kinds[layer] for layer in layers]
        return model(IDS, use_cache=False).logits
    finally:
        setattr(around, name, blocks)
        if kinds is not None:
            config.layer_types = kinds


@pytest.mark.parametrize(("kind", "extra"), RIGHT.items())
def test_a_cut_says_what_its_layers_say_in_the_target(kind, extra, tmp_path):
    target = target_of(kind, extra)
    for number, layers in enumerate(CHOICES):
        draft = cut_draft(target, layers, MASK, 4, (-1,))
        torch.testing.assert_close(draft(IDS, None), logits_without_the_others(target, layers), rtol=1e-5, atol=1e-5)
        if number == 0:
            with torch.device("meta"):  # what a dry run does
                config = cut_draft(Target(AutoModelForCausalLM.from_config(target.model.config)), layers, MASK, 4, (-1,)).lm.config
            assert config.to_dict() == draft.lm.config.to_dict()
            save_draft(draft, tmp_path / "draft")
            loaded = load_draft(str(tmp_path / "draft"), target, torch.float32, weight_format="plain")
            torch.testing.assert_close(loaded(IDS, None), draft(IDS, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "case"), REFUSED.items())
def test_what_no_config_can_say_is_refused_in_one_line(kind, case):
    extra, said = case
    target = target_of(kind, extra)
    with torch.device("meta"):
        meta = Target(AutoModelForCausalLM.from_config(target.model.config), name=target.name)
    for model in (target, meta):
        with torch.device(model.device), pytest.raises(Pard2Error, match=said) as caught:
            cut_draft(model, [1, 2, 3], MASK, 4, (-1,))
        assert "\n" not in str(caught.value) and f"of '{target.name}'" in str(caught.value)


def test_a_config_that_its_own_class_refuses_is_told_in_its_words():
    """As at the export, when a run has taken all its steps."""
    config = target_of("mellum", RIGHT["mellum"]).model.config
    config.__dict__["mlp_layer_types"] = ["sparse"] * 5  # of six layers
    with pytest.raises(Pard2Error, match=r"^layers 0, 1 of 'm' \(mellum\) cannot be cut out: .*`mlp_layer_types` \(5\); name others$"):
        config_of_layers(config, [0, 1], "m")


def untranslated(config, layers, _name):
    """As if nobody knew the entries of this kind of model."""
    cut = copy.deepcopy(config)
    cut.num_hidden_layers, cut.no_rope_layers = len(layers), config.no_rope_layers[: len(layers)]
    cut.layer_types = config.layer_types[: len(layers)]
    return cut


def test_an_entry_that_nobody_knows_is_found_by_its_layers_and_by_what_they_say(monkeypatch):
    target = target_of("smollm3", RIGHT["smollm3"])
    monkeypatch.setattr(pruning, "config_of_layers", untranslated)
    with pytest.raises(Pard2Error, match=r"layer 3 of 'tiny-smollm3' .* its self_attn.use_rope would change from 0 to 1; name other layers"):
        cut_draft(target, [1, 3, 5], MASK, 4, (-1,))
    monkeypatch.setattr(pruning, "_check_layers", lambda *_: None)
    for shared in (False, True):
        with pytest.raises(Pard2Error, match=r"^tiny-smollm3\[1,3,5\]: a draft of these layers says something else than they say in the target"):
            cut_draft(target, [1, 3, 5], MASK, 4, (-1,), shared_vocabulary=shared)
        assert cut_draft(target, [0, 1], MASK, 4, (-1,), shared_vocabulary=shared).num_layers == 2


def test_the_comparison_leaves_the_target_as_it_was():
    target = target_of("gpt_oss", RIGHT["gpt_oss"])
    config, said = copy.deepcopy(target.model.config), target.forward(IDS, layers=(-1, 2))
    cut_draft(target, [1, 4], MASK, 4, (-1,))
    again = target.forward(IDS, layers=(-1, 2))
    assert again.logits.equal(said.logits) and again.features.equal(said.features)
    assert target.model.config.to_dict() == config.to_dict()
    assert not any(block._forward_hooks for block in target.model.get_submodule(target.blocks_name))
