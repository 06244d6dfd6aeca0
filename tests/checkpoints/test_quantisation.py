"""Quantised targets: right, or refused in one line; never codes taken for weights, nor
weights without their scales."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BitsAndBytesConfig

from pard2.checkpoints.loading import load_causal_lm, load_target
from pard2.checkpoints.meta import meta_target
from pard2.checkpoints.pruning import cut_draft
from pard2.checkpoints.quantisation import check_quantisation
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.config import TrainConfig
from pard2.errors import Pard2Error
from pard2.models.target import Target
from pard2.train.initial import initial_draft
from tiny import MASK, tiny_model, tiny_target

CPU = torch.device("cpu")
UP = "model.layers.1.mlp.up_proj.weight"


def model_directory(path: Path, extra: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """A tiny model's directory with further tensors and config keys; a tensor of None is left out."""
    tiny_model().save_pretrained(path)
    (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | config))
    weights = load_file(path / "model.safetensors") | (extra or {})
    save_file({key: tensor for key, tensor in weights.items() if tensor is not None}, path / "model.safetensors", metadata={"format": "pt"})
    return path


def load(path: Path) -> torch.nn.Module:
    return load_causal_lm(str(path), torch.float32, CPU)


def refused(call, *arguments: Any) -> str:
    with pytest.raises(Pard2Error) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_method_that_transformers_does_not_know(tmp_path):
    """It would load the codes, leave the scales unread and say so at a level that nobody sees: a wrong
    target, and every command exits with 0."""
    scaled = {f"model.layers.{i}.mlp.up_proj.weight_scale": torch.ones(()) for i in range(2)}
    directory = model_directory(tmp_path / "model", scaled, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    said = f"{str(directory)!r} is quantised (modelopt) and cannot be read: transformers does not know this method; name the unquantised model"
    assert refused(load, directory) == refused(meta_target, str(directory)) == said
    for odd in ({}, {"quant_method": 5}, {"quant_method": ["fp8"]}, {"quant_method": "fp8", "weight_block_size": "x"}, [1], 5, "fp8"):
        directory = model_directory(tmp_path / "model", quantization_config=odd)
        refused(load, directory), refused(meta_target, str(directory))


_MISSING = {
    "bitsandbytes_4bit": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantizer_bnb_4bit.is_bitsandbytes_available", "bitsandbytes"),
    "bitsandbytes_8bit": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantizer_bnb_8bit.is_bitsandbytes_available", "bitsandbytes"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32}, "quantizer_awq.is_gptqmodel_available", "gptqmodel"),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "quantizer_gptq.is_optimum_available", "optimum"),
    "hqq": ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}, "quantizer_hqq.is_hqq_available", "HQQ"),
    "quanto": ({"quant_method": "quanto", "weights": "int8"}, "quantizer_quanto.is_optimum_quanto_available", "optimum-quanto"),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [16, 16]}, "quantizer_finegrained_fp8.is_accelerate_available", "accelerate"),
    "bitnet": ({"quant_method": "bitnet"}, "quantizer_bitnet.is_accelerate_available", "accelerate"),
    "eetq": ({"quant_method": "eetq", "weights": "int8"}, "quantizer_eetq.is_kernels_available", "kernels"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        "quantizer_compressed_tensors.is_compressed_tensors_available",
        "compressed-tensors",
    ),
    "fbgemm_fp8": ({"quant_method": "fbgemm_fp8"}, "quantizer_fbgemm_fp8.is_torch_cuda_available", "GPU"),
}


@pytest.mark.parametrize("case", _MISSING)
def test_a_missing_package_is_told_from_the_config_alone(tmp_path, monkeypatch, case):
    """Before a weight is read, and so by a dry run, too."""
    config, available, package = _MISSING[case]
    monkeypatch.setattr(f"transformers.quantizers.{available}", lambda *_: False)
    directory = model_directory(tmp_path / "model", quantization_config=config)
    (directory / "model.safetensors").unlink()
    for said in (refused(load, directory), refused(meta_target, str(directory))):
        assert f"is quantised ({config['quant_method']}) and cannot be read: " in said and package.lower() in said.lower()


def test_a_missing_device_is_told_as_a_missing_package_is(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_eetq.is_kernels_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    directory = model_directory(tmp_path / "model", quantization_config={"quant_method": "eetq", "weights": "int8"})
    assert "is quantised (eetq) and cannot be read: No GPU found. A GPU is needed" in refused(load, directory)


def test_a_checkpoint_that_says_gguf_in_its_config(tmp_path):
    """transformers leaves that there where it has expanded a file; blocks in safetensors nobody reads."""
    directory = model_directory(tmp_path / "model", quantization_config={"quant_method": "gguf"})
    assert all(tensor.equal(load(directory).state_dict()[key]) for key, tensor in tiny_model().state_dict().items())
    directory = model_directory(tmp_path / "blocks", {UP: None, f"{UP}_blocks": small(4)}, quantization_config={"quant_method": "gguf"})
    assert UP in refused(load, directory)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_codes_are_loaded_where_they_shall_be(tmp_path, monkeypatch, bitsandbytes, device):
    """Some cannot be moved afterwards, and bitsandbytes takes a GPU if it is not told otherwise."""
    pytest.importorskip("accelerate")
    asked = {}

    def from_pretrained(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise ValueError("seen")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    directory = model_directory(tmp_path / "model", quantization_config=bitsandbytes.to_dict())
    with pytest.raises(Pard2Error, match="seen"):
        load_causal_lm(str(directory), torch.bfloat16, torch.device(device))
    assert asked["device_map"] == {"": device} and asked["dtype"] == torch.bfloat16


def test_float8_is_dequantised_on_a_cpu_beside_a_gpu(monkeypatch):
    """Its kernels run on the GPU alone; what transformers chooses by the machine is chosen by the device."""
    pytest.importorskip("accelerate")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    method = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    for device, quantised in (("cpu", False), ("cuda", True)):
        config = tiny_model(quantization_config=dict(method)).config
        assert check_quantisation(config, "mine", device=torch.device(device)) is quantised
        assert config.quantization_config == method | ({} if quantised else {"dequantize": True})


def small(*shape: int) -> Tensor:
    return torch.full(shape, 0.5)


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        ("model.layers.0.mlp.up_proj.weight_scale", small(64, 1), "belongs to quantised weights"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", small(2, 2), "belongs to quantised weights"),
        ("model.layers.0.mlp.up_proj.weight.absmax", small(8), "belongs to quantised weights"),
        ("model.layers.0.mlp.up_proj.SCB", small(64), "belongs to quantised weights"),
        ("model.layers.0.mlp.up_proj.qweight", torch.ones(4, 64, dtype=torch.int32), "belongs to quantised weights"),
        ("model.layers.0.mlp.up_proj.qzeros", torch.ones(1, 8, dtype=torch.int32), "belongs to quantised weights"),
        ("model.layers.0.mlp.up_proj.g_idx", torch.ones(32, dtype=torch.int32), "belongs to quantised weights"),
        ("model.layers.0.mlp.up_proj.weight_packed", torch.ones(64, 4, dtype=torch.int32), "belongs to quantised weights"),
        (UP, torch.ones(64, 32, dtype=torch.int8), f"{UP} is stored in torch.int8, as codes and not as numbers"),
        (UP, torch.ones(64, 32, dtype=torch.bool), f"{UP} is stored in torch.bool"),
        (UP, torch.ones(64, 32, dtype=torch.complex64), f"{UP} is stored in torch.complex64"),
        # Parts of a layer that this architecture does not have: its function would be another one.
        ("model.layers.0.self_attn.q_proj.bias", small(32), "so it would say something else"),
        ("layers.0.self_attn.q_proj.bias", small(32), "so it would say something else"),
        ("model.layers.1.self_attn.q_norm.weight", small(8), "so it would say something else"),
        ("model.norm.bias", small(32), "so it would say something else"),
        ("lm_head.bias", small(61), "so it would say something else"),
    ],
)
def test_a_weight_that_would_be_left_unread_is_refused(tmp_path, key, tensor, said):
    message = refused(load, model_directory(tmp_path / "model", {key: tensor}))
    assert key in message and said in message


def test_what_stands_beside_a_model_is_left_alone(tmp_path):
    """Other heads, other towers, layers behind the last, and what older checkpoints kept: none of it
    changes what the model says."""
    harmless = [
        "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.k_scale", "model.layers.0.mlp.up_proj.input_scale",
        "model.layers.0.self_attn.masked_bias", "model.layers.2.mlp.up_proj.weight", "mtp.layers.0.weight", "value_head.weight",
        "model.vision_tower.weight", "score.weight",
    ]  # fmt: skip
    loaded = load(model_directory(tmp_path / "model", {key: small(4) for key in harmless}))
    assert all(tensor.equal(loaded.state_dict()[key]) for key, tensor in tiny_model().state_dict().items())


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> BitsAndBytesConfig:
    """The method with its package, as far as anybody asks."""
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_8bit.Bnb8BitHfQuantizer.validate_environment", lambda *_, **__: None)
    return BitsAndBytesConfig(load_in_8bit=True)


def test_no_draft_is_made_of_codes(bitsandbytes, tmp_path):
    """The int8 codes were copied as weights, and the draft kept a `quantization_config` by
    which nothing can decode it."""
    target = tiny_target()
    target.model.config.quantization_config = bitsandbytes
    with torch.device("meta"):  # as a dry run has it
        meta = Target(tiny_model(quantization_config=bitsandbytes.to_dict()), name="tiny-llama")
    said = "'tiny-llama' is quantised (bitsandbytes): no draft can be cut out of it"
    for one in (target, meta):
        assert refused(cut_draft, one, [0], MASK).startswith(said)


def blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float8 codes of a matrix and the scale of each block of 16 x 16."""
    tiles = weight.unflatten(0, (-1, 16)).unflatten(2, (-1, 16))
    scales = tiles.abs().amax((1, 3)) / 448
    return (tiles / scales[:, None, :, None]).flatten(2, 3).flatten(0, 1).to(torch.float8_e4m3fn), scales


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may multiply in float8 itself")
def test_float8_is_dequantised_in_the_dtype_that_was_asked_for_and_can_be_cut(tmp_path):
    pytest.importorskip("accelerate")
    plain, stored = tiny_model(), {}
    for key, tensor in plain.state_dict().items():
        if key.endswith("_proj.weight"):
            stored[key], stored[f"{key}_scale_inv"] = blocks(tensor)
            tensor.copy_(
                (stored[key].float().unflatten(0, (-1, 16)).unflatten(2, (-1, 16)) * stored[f"{key}_scale_inv"][:, None, :, None])
                .flatten(2, 3)
                .flatten(0, 1)
            )
    method = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    directory = model_directory(tmp_path / "model", stored, quantization_config=method)
    for dtype in (torch.bfloat16, torch.float32):
        target = load_target(str(directory), dtype, "cpu", weight_format="plain")
        assert {parameter.dtype for parameter in target.model.parameters()} == {dtype}
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(target.model.state_dict()[key], tensor, rtol=1e-5, atol=1e-6)
    save_draft(cut_draft(target, [1], MASK, 4, (-1,)), tmp_path / "draft")
    assert "quantization_config" not in (tmp_path / "draft" / "config.json").read_text()
    assert load_draft(str(tmp_path / "draft"), target, torch.float32).num_layers == 1


def test_a_quantised_lm_is_no_draft_to_train(bitsandbytes, tmp_path):
    directory = model_directory(tmp_path / "lm", quantization_config=bitsandbytes.to_dict())
    sections = {"target": {"name": "t"}, "draft": {"path": str(directory)}, "data": {"train": ["x"]}, "loop": {"output": "o", "steps": 1}}
    with torch.device("meta"):
        assert "is quantised (bitsandbytes)" in refused(initial_draft, TrainConfig.model_validate(sections), Target(tiny_model()))
