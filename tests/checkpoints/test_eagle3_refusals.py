"""EAGLE-3 checkpoints that are refused, each in one line, and weights that nobody can have trained."""

import math
import warnings

import pytest
import torch
from eagle3_files import change_config, change_tensors
from torch import Tensor, nn

from pard2.checkpoints.eagle3 import save_eagle3
from pard2.checkpoints.eagle3_health import looks_drawn, untrained
from pard2.checkpoints.inspection import inspect_draft
from pard2.checkpoints.meta import meta_draft
from pard2.checkpoints.read import load_draft
from pard2.errors import Pard2Error, Pard2Warning
from pard2.models.target import Target
from tiny import tiny_model, tiny_target
from tiny_eagle3 import tiny_eagle3


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(layers=8)


@pytest.fixture
def directory(target, tmp_path):
    save_eagle3(tiny_eagle3(target), tmp_path / "d")
    return tmp_path / "d"


def refusal(directory, target: Target) -> str:
    with pytest.raises(Pard2Error) as told:
        load_draft(str(directory), target, torch.float32)
    line = str(told.value)
    assert "\n" not in line and str(directory) in line
    return line


CONFIGS = {
    "more tokens than the target": ({"draft_vocab_size": 62}, "its draft vocabulary of 62 tokens is larger than the target's of 61"),
    "another vocabulary": ({"vocab_size": 128}, "reads a vocabulary of 128 tokens, 'tiny-llama' has 61"),
    "another target's width": ({"target_hidden_size": 64}, "reads hidden states 64 wide, those of 'tiny-llama' are 32"),
    "a layer that the target lacks": ({"eagle_aux_hidden_state_layer_ids": [1, 9]}, "reads hidden state 9, 'tiny-llama' has 0 to 8"),
    "a layer from behind": ({"eagle_aux_hidden_state_layer_ids": [1, -1]}, "reads hidden state -1"),
    "layers that are no list": ({"eagle_aux_hidden_state_layer_ids": "1, 2"}, "must be a list of layer numbers"),
    "another number of states": ({"num_aux_hidden_states": 3}, "num_aux_hidden_states = 3, but `eagle_aux_hidden_state_layer_ids` lists 2"),
    "two kinds of norm": ({"fc_norm": True, "norm_before_fc": True}, "both norm_before_fc and fc_norm"),
    "a norm without its tensor": ({"norm_before_fc": True}, "lacks input_norm.weight"),
    "two layers": ({"num_hidden_layers": 2}, "has 2 layers; an EAGLE-3 draft has one"),
    "dynamic rope": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic' rotary frequencies"),
    "long rope, in the older form": (
        {"rope_parameters": None, "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}},
        "'longrope' rotary frequencies",
    ),
    "a layer of another kind": ({"model_type": "deepseek_v3"}, "a Llama's or a Qwen 3's here, not 'deepseek_v3'"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "is quantised"),
    "no features": ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state = false"),
    "a flag that is a word": ({"norm_output": "yes"}, "`norm_output` has the wrong type"),
    "a size that no model has": ({"hidden_size": -32}, "hidden_size = -32"),
    "another MLP": ({"intermediate_size": 65}, "its config says [32, 65]"),
    "EAGLE-1": ({"architectures": ["LlamaForCausalLMEagle"]}, "is an EAGLE-1 draft; what is decoded here: EAGLE-3"),
    "EAGLE-1 of vLLM": ({"architectures": ["EagleLlamaForCausalLM"]}, "is an EAGLE-1 draft"),
    "DFlash": ({"architectures": ["DFlashDraftModel"]}, "is a DFlash draft"),
    "Medusa": ({"architectures": ["MedusaModel"], "model_type": "medusa"}, "is Medusa heads"),
    "P-EAGLE of speculators": ({"speculators_model_type": "peagle"}, "is a P-EAGLE draft"),
    "DFlash of speculators": ({"speculators_model_type": "dflash"}, "is a DFlash draft"),
    "unknown to speculators": ({"speculators_model_type": "new"}, "is a draft of speculators' kind 'new'"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be(directory, target, changes, line):
    change_config(directory, **changes)
    assert line in refusal(directory, target)


def absent(key):
    return lambda tensors: tensors.pop(key)


def put(key, value):
    return lambda tensors: tensors.update({key: value(tensors.get(key))})


TENSORS = {
    "no fc": (absent("fc.weight"), "lacks `fc.weight`, which fuses the target's features"),
    "no head": (absent("lm_head.weight"), "lacks lm_head.weight"),
    "a head of another size": (put("lm_head.weight", lambda head: head[:30]), "lm_head.weight is [30, 32], its config says [31, 32]"),
    "a head of the target's size": (put("lm_head.weight", lambda head: torch.ones(61, 32)), "lm_head.weight is [61, 32]"),
    "an embedding of another size": (put("embed_tokens.weight", lambda _: torch.ones(60, 32)), "embed_tokens.weight is [60, 32]"),
    "fc of other features": (put("fc.weight", lambda fc: torch.ones(32, 96)), "fc.weight is [32, 96], its config says [32, 64]"),
    "no norm": (absent("midlayer.hidden_norm.weight"), "lacks midlayer.hidden_norm.weight"),
    "a second layer": (put("layers.1.mlp.up_proj.weight", lambda _: torch.ones(2, 2)), "it has more than one layer"),
    "a tensor of something else": (put("mask_hidden", lambda _: torch.ones(1, 96)), "holds mask_hidden, which no EAGLE-3 draft of its config has"),
    "one tensor twice": (put("model.norm.weight", lambda _: torch.ones(32)), "holds norm.weight twice"),
    "codes": (put("fc.weight", lambda fc: fc.to(torch.int8)), "fc.weight is stored in torch.int8, as codes"),
    "small floats": (put("fc.weight", lambda fc: fc.to(torch.float8_e4m3fn)), "fc.weight is stored in torch.float8_e4m3fn, as codes"),
    "no d2t": (absent("d2t"), "lacks `d2t`, which says what its 31 tokens are of the target's 61"),
    "a short d2t": (put("d2t", lambda d2t: d2t[:30]), "`d2t` is [30] torch.int64, expected [31] integers"),
    "d2t in floats": (put("d2t", lambda d2t: d2t.float()), "`d2t` is [31] torch.float32"),
    "d2t beyond the target": (put("d2t", lambda d2t: d2t + 40), "`d2t` names token 98 of a target with 61"),
    "d2t below zero": (put("d2t", lambda d2t: d2t - 40), "`d2t` names token -"),
    "d2t with one token twice": (put("d2t", lambda d2t: torch.cat([d2t[:1], d2t[:1] - 1, d2t[2:]])), "`d2t` names 1 of its tokens twice"),
    "t2d of other tokens": (put("t2d", lambda t2d: ~t2d), "`t2d` marks other tokens than `d2t` names"),
    "t2d of another size": (put("t2d", lambda t2d: t2d[:60]), "`t2d` is [60] torch.bool, expected [61] truth values"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "line"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_cannot_be(directory, target, change, line):
    change_tensors(directory, change)
    assert line in refusal(directory, target)
    assert any(line in fault for fault in _lacks(directory))


def _lacks(directory) -> list[str]:
    try:
        return inspect_draft(directory).lacks
    except Pard2Error as error:
        return [str(error)]


def test_a_narrower_draft_needs_an_embedding_of_its_own(target, tmp_path):
    draft = tiny_eagle3(target, config={"hidden_size": 16, "head_dim": 4, "intermediate_size": 32}, own_embedding=True)
    save_eagle3(draft, tmp_path / "d")
    load_draft(str(tmp_path / "d"), target, torch.float32)
    change_tensors(tmp_path / "d", absent("embed_tokens.weight"))
    assert "is 16 wide and lacks `embed_tokens.weight`; that of 'tiny-llama' is 32 wide" in refusal(tmp_path / "d", target)
    assert "embed_tokens.weight" in inspect_draft(tmp_path / "d").lacks[0]


def test_a_target_of_too_few_layers_for_the_default_features(directory):
    change_config(directory, "eagle_aux_hidden_state_layer_ids", eagle_config={}, num_aux_hidden_states=3)
    small = tiny_target(layers=4)
    with pytest.raises(Pard2Error, match="a target of 4 layers is too small for EAGLE-3's default features"):
        load_draft(str(directory), small, torch.float32)
    with pytest.raises(Pard2Error, match="too small"):
        meta_draft(str(directory), Target(tiny_model(layers=4).to("meta")))


def test_a_corrupt_file_and_none(directory, target):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert "is corrupt or missing" in refusal(directory, target)
    file.unlink()
    assert "is corrupt or missing" in refusal(directory, target)


# --- weights that nobody can have trained ----------------------------------------------------------


def head_of(weight: Tensor) -> list[str]:
    return untrained({"lm_head.weight": weight}, None)


BROKEN = {
    "zeros": (lambda head: torch.zeros_like(head), "all its numbers are 0"),
    "a constant": (lambda head: torch.full_like(head, 0.5), "all its numbers are 0.5"),
    "equal rows": (lambda head: head[:1].expand_as(head), "all its rows are the same"),
    "NaN": (lambda head: head.clone().index_fill_(0, torch.tensor([7]), math.nan), "it holds NaN or infinity"),
    "infinity": (lambda head: head.clone().index_fill_(0, torch.tensor([7]), -math.inf), "it holds NaN or infinity"),
}


@pytest.mark.parametrize(("change", "why"), BROKEN.values(), ids=BROKEN)
def test_a_head_that_cannot_be_trained_is_told_when_it_is_read(directory, target, change, why):
    change_tensors(directory, put("lm_head.weight", lambda head: change(head).contiguous()))
    with pytest.warns(Pard2Warning, match=f"lacks a trained `lm_head.weight`: {why}"):
        load_draft(str(directory), target, torch.float32)
    assert f"a trained `lm_head.weight`: {why}" in inspect_draft(directory).lacks


def test_a_sound_draft_is_told_nothing_of(directory, target, recwarn):
    load_draft(str(directory), target, torch.float32)
    assert not recwarn.list and inspect_draft(directory).lacks == []


DRAWN = {
    "normal": lambda weight: nn.init.normal_(weight, std=0.02),
    "uniform, as nn.Linear": lambda weight: nn.init.kaiming_uniform_(weight, a=math.sqrt(5)),
    "normal, as nn.Embedding": lambda weight: nn.init.normal_(weight),
    "xavier": lambda weight: nn.init.xavier_normal_(weight),
}


@pytest.mark.parametrize("shape", [(2048, 64), (4096, 256), (20000, 128)], ids=str)
@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_head_as_a_generator_left_it_is_told(shape, draw, dtype):
    for seed in range(3):
        torch.manual_seed(seed)
        assert "as a random generator left them" in head_of(draw(torch.empty(shape)).to(dtype))[0]


def trained(shape: tuple[int, int], steps: int, optimiser, mean: float, seed: int = 0) -> Tensor:
    """A head after some steps of cross-entropy on tokens by Zipf's law, from a random start."""
    torch.manual_seed(seed)
    size, width = shape
    head = nn.init.normal_(nn.Parameter(torch.empty(size, width)), std=0.02)
    chance = 1 / torch.arange(1, size + 1)
    chosen = optimiser([head])
    for _ in range(steps):
        tokens, states = torch.multinomial(chance, 64, replacement=True), torch.randn(64, width) + mean * torch.linspace(-1, 1, width)
        chosen.zero_grad()
        nn.functional.cross_entropy(states @ head.T, tokens).backward()
        chosen.step()
    return head.detach()


@pytest.mark.parametrize("mean", [0.0, 0.5], ids=["centred states", "states with a mean"])
@pytest.mark.parametrize("shape", [(2048, 64), (4096, 256)], ids=str)
@pytest.mark.parametrize(
    ("optimiser", "steps"),
    [(lambda p: torch.optim.Adam(p, lr=1e-4), 100), (lambda p: torch.optim.AdamW(p, lr=1e-3), 50), (lambda p: torch.optim.SGD(p, lr=1.0), 100)],
    ids=["Adam, 100 small steps", "AdamW", "SGD"],
)
def test_a_head_trained_from_a_random_start_is_not(optimiser, steps, shape, mean):
    head = trained(shape, steps, optimiser, mean)
    assert head_of(head) == [] and head_of(head.bfloat16()) == []


def test_what_is_too_small_to_tell_is_not_judged():
    assert not looks_drawn(torch.randn(1000, 64)) and not looks_drawn(torch.randn(2000, 32))


def test_an_embedding_is_compared_with_the_targets():
    torch.manual_seed(0)
    table = torch.randn(2048, 64) * torch.rand(2048, 1) + 0.3 * torch.randn(64)  # no table as it was drawn
    other = torch.randn(2048, 64) * torch.rand(2048, 1) + 0.3 * torch.randn(64)
    near = table + 0.7 * table.std() * torch.randn(2048, 64)
    assert untrained({"embed_tokens.weight": table}, table) == [] and untrained({"embed_tokens.weight": near}, table) == []
    assert "nothing in common with those of the target's" in untrained({"embed_tokens.weight": other}, table)[0]
    assert untrained({"embed_tokens.weight": other}, None) == []
    assert untrained({"embed_tokens.weight": other[:, :32]}, table) == []  # of another width: nothing is to be compared


def test_an_embedding_of_another_model_is_told_when_it_is_read(tmp_path):
    target = tiny_target(layers=8, hidden=64, vocab=1100)
    draft = tiny_eagle3(target, own_embedding=True)
    save_eagle3(draft, tmp_path / "d")
    with pytest.warns(Pard2Warning, match=r"lacks a trained `embed_tokens.weight`: its numbers are as a random generator left them"):
        load_draft(str(tmp_path / "d"), target, torch.float32)
    table = target.model.get_input_embeddings().weight
    scales = torch.rand(1100, 1)
    change_tensors(tmp_path / "d", put("embed_tokens.weight", lambda own: own * scales))
    with pytest.warns(Pard2Warning, match="its rows have nothing in common with those of the target's embedding"):
        load_draft(str(tmp_path / "d"), target, torch.float32)
    change_tensors(tmp_path / "d", put("embed_tokens.weight", lambda own: table * scales + 0.01 * own))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_draft(str(tmp_path / "d"), target, torch.float32)
