"""What cannot be loaded, told in one line."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pard2.errors import Pard2Error
from pard2.models.loading import load_causal_lm, load_config, load_tokenizer, parse_device, parse_dtype
from tiny import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(directory: Path | str) -> str:
    with pytest.raises(Pard2Error) as caught:
        load_causal_lm(str(directory), torch.float32, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_saved_is_loaded(directory):
    loaded, model = load_causal_lm(str(directory), torch.float32, CPU), tiny_model()
    assert all(loaded.state_dict()[key].equal(tensor) for key, tensor in model.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("name", ["/no/such/directory", "../neither here/nor there", "a/b/c"])
def test_a_name_that_can_be_no_model(name):
    assert refused(name).startswith(f"no model {name!r}: neither a directory nor a hub id; give a directory, a hub id (org/name), a .gguf file")


def test_a_missing_gguf_file(tmp_path):
    assert refused(tmp_path / "none.gguf") == f"no such GGUF file: {tmp_path / 'none.gguf'}"


def test_an_empty_directory(tmp_path):
    assert refused(tmp_path).startswith(f"cannot load the model {str(tmp_path)!r}: ")


def test_an_architecture_nobody_knows(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "llamma"}))
    assert "llamma" in refused(directory)


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\xff" * 64])
def test_a_corrupt_weight_file(directory, damage):
    (directory / "model.safetensors").write_bytes(damage)
    assert refused(directory).startswith(f"cannot load the model {str(directory)!r}: ")


def test_a_truncated_weight_file(directory):
    file = directory / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    assert refused(directory).startswith(f"cannot load the model {str(directory)!r}: ")


def test_a_weight_that_is_missing_is_not_invented(directory):
    """transformers warns and goes on with random numbers."""
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    assert refused(directory) == f"{str(directory)!r}: the weight file lacks model.layers.1.mlp.up_proj.weight and 1 more; download it again"


def test_a_weight_of_another_shape(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    assert refused(directory) == f"{str(directory)!r}: the weight file has another shape for model.norm.weight; download it again"


def test_pickled_weights_are_not_opened(directory):
    """A pickle may run code; only safetensors are read."""
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    assert refused(directory).startswith(f"cannot load the model {str(directory)!r}: ")


def test_a_config_that_is_no_json(directory):
    (directory / "config.json").write_text("{")
    with pytest.raises(Pard2Error, match="cannot load the model"):
        load_config(str(directory))


def test_no_tokenizer_is_none_and_a_broken_one_is_an_error(directory):
    assert load_tokenizer(str(directory)) is None
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(Pard2Error, match="cannot load the model"):
        load_tokenizer(str(directory))


def test_a_dtype_or_device_nobody_knows():
    with pytest.raises(Pard2Error, match="--dtype 'float8' is not one of float32, bfloat16, float16"):
        parse_dtype("float8")
    with pytest.raises(Pard2Error, match="--device 'warp' is not a device; say cpu, cuda or cuda:N"):
        parse_device("warp")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(Pard2Error, match="--device cuda: torch sees no CUDA device here; say --device cpu"):
        parse_device("cuda")
