"""EAGLE-3 drafts as files: written and read back, made by hand in the published layout, refused."""

import json
import math

import pytest
import torch
from eagle3_files import change_config, change_tensors, config_of, tensors_of
from safetensors.torch import save_file
from torch import Tensor

from pard2.checkpoints.eagle3 import is_eagle3, load_eagle3, save_eagle3
from pard2.checkpoints.meta import meta_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error, Pard2Warning
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target
from tiny import greedy, tiny_target
from tiny_eagle3 import read, tiny_eagle3

LAYOUTS = ("eagle3", "speculators")
NORMS = [
    {},
    {"feature_norm": "joint", "norm_before_residual": True},
    {"feature_norm": "each", "norm_output": True, "draft_tokens": 3},
]


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(layers=8)


def same(one: Eagle3Draft, other: Eagle3Draft) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    bits = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    return bits and one.spec == other.spec and torch.equal(one.token_ids, other.token_ids) and one.owns_embedding == other.owns_embedding


QWEN = {"model_type": "qwen3", "head_dim": 8}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "how",
    [
        *NORMS,
        {"own_embedding": True, "size": 61},
        {"target_layers": (2, 4, 5)},
        {"config": {"attention_bias": True, "mlp_bias": True, "bias": True}},
        {"config": QWEN},
        {"config": {"hidden_size": 16, "head_dim": 8, "intermediate_size": 48}, "own_embedding": True},
        {"template_arguments": [{"enable_thinking": False}], "made_for": {"pard2_target": "t", "pard2_target_samples": ""}},
    ],
    ids=str,
)
def test_what_is_written_is_read_back_bit_for_bit(target, tmp_path, layout, how):
    draft = tiny_eagle3(target, **how)
    save_eagle3(draft, tmp_path / "d", layout=layout)
    again = read(tmp_path / "d", target)
    assert same(draft, again)
    assert again.spec.made_for == draft.spec.made_for and again.config.model_type == draft.config.model_type
    save_eagle3(again, tmp_path / "e", layout=layout)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "d" / file).read_bytes() == (tmp_path / "e" / file).read_bytes()


def test_every_key_of_the_plain_layout_is_spelt_out(target, tmp_path):
    save_eagle3(tiny_eagle3(target, target_layers=(2, 4, 5)), tmp_path / "d")
    config = config_of(tmp_path / "d")
    expected = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "draft_vocab_size": 31,
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "target_hidden_size": 32,
        "num_aux_hidden_states": 3,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True, "norm_before_fc": False},  # SGLang's
        "eagle_aux_hidden_state_layer_ids": [2, 4, 5],
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "pard2_draft_tokens": 5,
    }
    assert {key: config.get(key) for key in expected} == expected
    tensors = tensors_of(tmp_path / "d")
    layer = [f"self_attn.{one}_proj" for one in "qkvo"] + [f"mlp.{one}_proj" for one in ("gate", "up", "down")]
    layer += ["input_layernorm", "hidden_norm", "post_attention_layernorm"]
    assert set(tensors) == {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d", *(f"midlayer.{one}.weight" for one in layer)}
    assert tensors["midlayer.self_attn.q_proj.weight"].shape == (32, 64) and tensors["fc.weight"].shape == (32, 96)


def test_save_draft_writes_the_plain_layout_in_the_dtype_asked_for(target, tmp_path):
    save_draft(tiny_eagle3(target), tmp_path / "d", torch.bfloat16, vocabulary=False)
    stored = tensors_of(tmp_path / "d")
    assert stored["fc.weight"].dtype is torch.bfloat16 and stored["d2t"].dtype is torch.int64 and stored["t2d"].dtype is torch.bool
    config = config_of(tmp_path / "d")
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", [*NORMS, {"config": QWEN}, {"own_embedding": True}], ids=str)
def test_what_is_read_decodes_losslessly(target, tmp_path, how, dtype):
    """In bfloat16 the draft may take packed weights, whatever the target's are."""
    save_eagle3(tiny_eagle3(target, **how), tmp_path / "d")
    draft = load_draft(str(tmp_path / "d"), target, dtype)
    prompts = [[5, 7, 9], [1, 2, 3, 4, 5, 6]]
    answers = Engine(target, draft, "eagle3", 3).generate(prompts, SamplingParams(max_tokens=12))
    assert [answer.token_ids for answer in answers] == [greedy(target, prompt, 12) for prompt in prompts]
    assert sum(answer.stats.proposed for answer in answers) > 0


# --- made by hand ---------------------------------------------------------------------------------

H, HEADS, KV, D, INNER, SIZE, TOKENS, BASE = 32, 4, 2, 8, 40, 9, 61, 5000.0
TARGET_IDS = [3, 4, 8, 20, 21, 40, 50, 59, 60]


def by_hand(directory, prefix: str = "", layer: str = "midlayer.", **changes) -> dict[str, Tensor]:
    """A checkpoint in the published layout, made of nothing of ours; its tensors by their plain names."""
    torch.manual_seed(11)
    shapes = {
        "fc.weight": (H, 3 * H), "norm.weight": (H,), "lm_head.weight": (SIZE, H),
        "midlayer.self_attn.q_proj.weight": (HEADS * D, 2 * H), "midlayer.self_attn.k_proj.weight": (KV * D, 2 * H),
        "midlayer.self_attn.v_proj.weight": (KV * D, 2 * H), "midlayer.self_attn.o_proj.weight": (H, HEADS * D),
        "midlayer.mlp.gate_proj.weight": (INNER, H), "midlayer.mlp.up_proj.weight": (INNER, H), "midlayer.mlp.down_proj.weight": (H, INNER),
        "midlayer.input_layernorm.weight": (H,), "midlayer.hidden_norm.weight": (H,), "midlayer.post_attention_layernorm.weight": (H,),
    }  # fmt: skip
    if changes.get("norm_before_fc"):
        shapes["input_norm.weight"] = (3 * H,)
    if changes.get("fc_norm"):
        shapes |= {f"fc_norm.{i}.weight": (H,) for i in range(3)}
    tensors = {name: 0.5 * torch.randn(*shape) + (len(shape) == 1) for name, shape in shapes.items()}
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": H, "intermediate_size": INNER, "num_hidden_layers": 1,
        "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": D, "rms_norm_eps": 1e-5, "hidden_act": "silu", "vocab_size": TOKENS,
        "draft_vocab_size": SIZE, "rope_theta": BASE, "max_position_embeddings": 256, "tie_word_embeddings": False, "norm_before_residual": False,
        "torch_dtype": "float32",
    } | changes  # fmt: skip
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    known = torch.zeros(TOKENS, dtype=torch.bool)
    known[TARGET_IDS] = True
    vocabulary = {"d2t": torch.tensor(TARGET_IDS) - torch.arange(SIZE), "t2d": known}
    stored = {name if name == "lm_head.weight" else prefix + name.replace("midlayer.", layer): tensor for name, tensor in tensors.items()}
    save_file(stored | vocabulary, directory / "model.safetensors")
    return tensors


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def turned(x: Tensor, position: int) -> Tensor:
    """A head [D] at a position: the pairs (i, i + D / 2) turned by position / BASE^(2 i / D)."""
    out = x.clone()
    for i in range(D // 2):
        angle = position / BASE ** (2 * i / D)
        a, b = x[i], x[i + D // 2]
        out[i], out[i + D // 2] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
    return out


def formulas(w: dict[str, Tensor], embedding: Tensor, tokens: list[int], features: Tensor, **how) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and the next depth's features [N, H] of a text's slots (arXiv 2503.01840).

    features: [N, 3 * H] the target's hidden states side by side.
    """
    if how.get("norm_before_fc"):
        features = rms(features, w["input_norm.weight"])
    if how.get("fc_norm"):
        features = torch.cat([rms(part, w[f"fc_norm.{i}.weight"]) for i, part in enumerate(features.split(H, -1))], -1)
    g = features @ w["fc.weight"].T
    e, n = rms(embedding[tokens], w["midlayer.input_layernorm.weight"]), rms(g, w["midlayer.hidden_norm.weight"])
    x = torch.cat([e, n], -1)
    q, k, v = ((x @ w[f"midlayer.self_attn.{one}_proj.weight"].T).unflatten(-1, (-1, D)) for one in "qkv")
    rows = []
    for i in range(len(tokens)):
        heads = []
        for h in range(HEADS):
            group = h // (HEADS // KV)
            scores = torch.stack([turned(q[i, h], i) @ turned(k[j, group], j) for j in range(i + 1)]) / math.sqrt(D)
            heads.append(scores.softmax(0) @ v[: i + 1, group])
        rows.append(torch.cat(heads))
    stream = (n if how.get("norm_before_residual") else g) + torch.stack(rows) @ w["midlayer.self_attn.o_proj.weight"].T
    m = rms(stream, w["midlayer.post_attention_layernorm.weight"])
    gate, up = m @ w["midlayer.mlp.gate_proj.weight"].T, m @ w["midlayer.mlp.up_proj.weight"].T
    stream = stream + (gate * torch.sigmoid(gate) * up) @ w["midlayer.mlp.down_proj.weight"].T
    final = rms(stream, w["norm.weight"])
    logits = torch.full((len(tokens), TOKENS), -torch.inf)
    logits[:, TARGET_IDS] = final @ w["lm_head.weight"].T
    return logits, final if how.get("norm_output") else stream


@pytest.mark.parametrize("how", [{}, {"norm_before_residual": True}, {"norm_before_fc": True, "norm_output": True}, {"fc_norm": True}], ids=str)
def test_a_checkpoint_made_by_hand_decodes_as_its_formulas_say(target, tmp_path, how):
    weights = by_hand(tmp_path / "d", **how)
    draft = read(tmp_path / "d", target)
    assert draft.spec.target_layers == (2, 4, 5)  # of 8 layers, low, middle and high
    tokens, features = [5, 9, 60, 2, 33], torch.randn(5, 3 * H)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (one.repeat_interleave(HEADS // KV, 1).transpose(0, 1) for one in (k, v))
        return torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, is_causal=True).transpose(0, 1)

    final, following = draft.states(torch.tensor(tokens), draft.fuse(features), torch.arange(5), attend)
    logits, expected = formulas(weights, target.model.get_input_embeddings().weight, tokens, features, **how)
    torch.testing.assert_close(draft.lm_head(final), logits[:, TARGET_IDS], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(following, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("prefix", "layer"), [("model.", "midlayer."), ("", "layers.0."), ("model.", "layers.0.")])
def test_other_names_of_tensors_are_read(target, tmp_path, prefix, layer):
    by_hand(tmp_path / "d")
    by_hand(tmp_path / "e", prefix, layer)
    assert same(read(tmp_path / "d", target), read(tmp_path / "e", target))


def test_several_files_and_a_pickle_of_tensors_are_read(target, tmp_path):
    by_hand(tmp_path / "d")
    expected = read(tmp_path / "d", target)
    tensors = tensors_of(tmp_path / "d")
    (tmp_path / "d" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "d" / "pytorch_model.bin")
    assert same(expected, read(tmp_path / "d", target))
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, tmp_path / "d" / file)
    (tmp_path / "d" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "d" / "pytorch_model.bin").write_bytes(b"")
    assert same(expected, read(tmp_path / "d", target))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_is_not_executed(target, tmp_path, capsys):
    by_hand(tmp_path / "d")
    (tmp_path / "d" / "model.safetensors").unlink()
    torch.save({"fc.weight": Evil()}, tmp_path / "d" / "pytorch_model.bin")
    with pytest.raises(Pard2Error, match="holds more than tensors, so it was not loaded"):
        read(tmp_path / "d", target)
    assert "executed" not in capsys.readouterr().out


# --- known bugs of others ---------------------------------------------------------------------------

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("rope", [LLAMA3, {"rope_type": "default", "partial_rotary_factor": 0.5}], ids=["llama3", "partial"])
def test_rope_or_window_fields_lost(target, tmp_path, layout, kind, rope):
    more = {"use_sliding_window": True, "max_window_layers": 0, "head_dim": 8} if kind == "qwen3" else {}
    config = {"model_type": kind, "rope_parameters": {"rope_theta": 777.0} | rope, "sliding_window": 7, "layer_types": ["sliding_attention"]} | more
    draft = tiny_eagle3(target, config=config)
    assert draft._window == 7 and len(draft.rotary_emb.inv_freq) == (2 if "partial_rotary_factor" in rope else 4)
    save_eagle3(draft, tmp_path / "d", layout=layout)
    again = read(tmp_path / "d", target)
    assert again._window == 7 and torch.equal(again.rotary_emb.inv_freq, draft.rotary_emb.inv_freq)
    written = config_of(tmp_path / "d")
    layer = written["transformer_layer_config"] if layout == "speculators" else written
    # As engines read it that do not know `rope_parameters`.
    assert layer["rope_theta"] == 777.0 and layer["sliding_window"] == 7
    assert layer["rope_scaling"] == (LLAMA3 if rope is LLAMA3 else None) and layer.get("partial_rotary_factor") == rope.get("partial_rotary_factor")
    older = {key: value for key, value in layer.items() if key != "rope_parameters"}
    (tmp_path / "d" / "config.json").write_text(json.dumps(written | ({"transformer_layer_config": older} if layout == "speculators" else {})))
    if layout == "eagle3":
        (tmp_path / "d" / "config.json").write_text(json.dumps(older))
    assert torch.equal(read(tmp_path / "d", target).rotary_emb.inv_freq, draft.rotary_emb.inv_freq)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_without_kinds_of_layers_is_written_with_them(target, tmp_path, layout):
    save_eagle3(tiny_eagle3(target, config={"sliding_window": 7}), tmp_path / "d", layout=layout)
    written = config_of(tmp_path / "d")
    assert written.get("transformer_layer_config", written)["layer_types"] == ["sliding_attention"]
    assert read(tmp_path / "d", target)._window == 7


@pytest.mark.parametrize("kept", ["with t2d", "without t2d"])
def test_d2t_as_absolute_ids(target, tmp_path, kept):
    by_hand(tmp_path / "d")

    def absolute(tensors):
        tensors["d2t"] += torch.arange(SIZE)
        if kept == "without t2d":
            del tensors["t2d"]

    change_tensors(tmp_path / "d", absolute)
    with pytest.raises(Pard2Error, match="`d2t` holds the target's ids themselves, not their differences"):
        read(tmp_path / "d", target)


def test_differences_that_would_also_do_as_ids_are_differences(target, tmp_path):
    """3, 4, 5, ..: both readings name different tokens, and `t2d` tells which is meant."""
    by_hand(tmp_path / "d")
    ids, offsets = 2 * torch.arange(SIZE) + 3, torch.arange(SIZE) + 3
    known = torch.zeros(TOKENS, dtype=torch.bool)
    known[ids] = True
    change_tensors(tmp_path / "d", lambda tensors: tensors.update(d2t=offsets, t2d=known))
    assert read(tmp_path / "d", target).token_ids.tolist() == ids.tolist()
    known = torch.zeros(TOKENS, dtype=torch.bool)
    known[offsets] = True
    change_tensors(tmp_path / "d", lambda tensors: tensors.update(t2d=known))
    with pytest.raises(Pard2Error, match="holds the target's ids themselves"):
        read(tmp_path / "d", target)


def test_dflashs_layer_ids(target, tmp_path):
    """DFlash counts blocks, one lower than hidden states; here id i is `hidden_states[i]`, in both places."""
    by_hand(tmp_path / "d", eagle_aux_hidden_state_layer_ids=[1, 3, 8])
    draft = read(tmp_path / "d", target)
    assert draft.spec.target_layers == (1, 3, 8)
    ids = torch.tensor([[5, 7, 9]])
    states = target.model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(target.forward(ids, layers=draft.spec.target_layers).features, torch.cat([states[i] for i in (1, 3, 8)], -1))
    by_hand(tmp_path / "e", eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 3, 8]})
    with pytest.warns(Pard2Warning, match=r"\[1, 3, 8\] are taken as numbers of hidden states, as vLLM's are; SGLang counts one lower"):
        assert read(tmp_path / "e", target).spec.target_layers == (1, 3, 8)
    change_config(tmp_path / "d", dflash_config={"target_layer_ids": [1, 3, 7]}, architectures=["DFlashDraftModel"])
    with pytest.raises(Pard2Error, match="is a DFlash draft"):
        read(tmp_path / "d", target)


def test_a_missing_norm_before_residual_is_told(target, tmp_path, recwarn):
    by_hand(tmp_path / "d")
    read(tmp_path / "d", target)
    assert not recwarn.list
    change_config(tmp_path / "d", "norm_before_residual")
    with pytest.warns(
        Pard2Warning, match="`norm_before_residual`.*false is assumed, as vLLM and SGLang read this layout; vLLM reads specul.* as true"
    ):
        assert not read(tmp_path / "d", target).spec.norm_before_residual


def test_a_draft_of_another_target_is_told_without_advice_for_others(target, tmp_path):
    draft = tiny_eagle3(target, made_for={"pard2_target": "t", "pard2_target_samples": "00"})
    save_eagle3(draft, tmp_path / "d")
    with pytest.warns(Pard2Warning, match="was made for another target") as told:
        read(tmp_path / "d", target)
    assert "pard2-ti" not in str(told[0].message)
