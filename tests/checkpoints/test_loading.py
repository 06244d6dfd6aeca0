"""What cannot be loaded, told in one line."""

import json
import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from chat_tokenizer import byte_tokenizer
from pard2.checkpoints.loading import load_causal_lm, load_config, load_target, load_tokenizer, parse_device, parse_dtype
from pard2.checkpoints.meta import meta_target
from pard2.checkpoints.read import load_draft
from pard2.errors import Pard2Error
from pard2.kernels.packed import PackedLinear
from pard2.kernels.weight_format import weight_formats
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_format_that_was_asked_for_or_a_fast_one(directory, dtype):
    """Plain where packed ones were meant is merely slow; packed where plain ones
    were meant cannot be trained."""
    formats = weight_formats(CPU, dtype)
    asked = [None, *formats]
    for wanted in asked:
        target = load_target(str(directory), dtype, CPU, wanted)
        draft = load_draft(str(directory), target, dtype, weight_format=wanted)
        assert target.weight_format == wanted or (wanted is None and target.weight_format in formats)
        for model in (target.model, draft.lm):
            plain = dtype == torch.float32 if wanted is None else wanted == "plain"
            assert any(isinstance(module, PackedLinear) for module in model.modules()) != plain
    with pytest.raises(Pard2Error, match="^`weight_format` 'int1': "):
        load_target(str(directory), dtype, CPU, "int1")
    with pytest.raises(Pard2Error, match="^`weight_format` 'int1': "):
        load_draft(str(directory), target, dtype, weight_format="int1")


@pytest.mark.parametrize("name", ["/no/such/directory", "../neither here/nor there", "a/b/c"])
def test_a_name_that_can_be_no_model(name):
    assert refused(name).startswith(
        f"no model {name!r}: neither a directory nor a hub id; give a directory, a hub id (org/name, or org/name@revision), a .gguf file"
    )


def test_a_missing_gguf_file(tmp_path):
    assert refused(tmp_path / "none.gguf") == f"no such GGUF file: {tmp_path / 'none.gguf'}"


def test_an_empty_directory(tmp_path):
    assert refused(tmp_path).startswith(f"no checkpoint in {str(tmp_path)!r}: config.json is missing; give a directory, a hub id")


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


_CONFIGS: dict[str, object] = {
    "a number": 5, "null": None, "a list": [], "nothing": {}, "nested": "[" * 100_000, "text": "{a}", "digits": '{"a": ' + "1" * 5000 + "}",
    "hidden_size": "x", "hidden_size ": 10**9, "hidden_size  ": -3, "hidden_size   ": 0, "vocab_size": 10**12, "num_hidden_layers": 10**9,
    "num_hidden_layers ": 0, "num_attention_heads": 0, "num_attention_heads ": -4, "num_key_value_heads": 0, "num_key_value_heads ": 10**12,
    "intermediate_size": 10**18, "intermediate_size ": -1, "head_dim": 0, "layer_types": 5, "text_config": 5, "text_config ": {},
    "sliding_window": "x", "sliding_window ": 2**70, "pad_token_id": 10**9,
    "hidden_act": "no", "rope_parameters": 5,
    "rms_norm_eps": "x", "max_position_embeddings": "x", "model_type": [], "model_type ": "gpt2", "quantization_config": 5,
}  # fmt: skip


@pytest.mark.parametrize("case", _CONFIGS)
def test_any_damage_to_a_config_is_one_line(directory, case):
    """With weights and, as a dry run reads it, without; where a field can be read, before
    anything of its size is built."""
    file, value, field = directory / "config.json", _CONFIGS[case], case.strip()
    whole = json.loads(file.read_text())
    if field in whole or field in ("head_dim", "layer_types", "text_config", "quantization_config", "sliding_window"):
        value = whole | {field: value}
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    refused(directory)
    try:
        meta_target(str(directory))
    except Pard2Error as error:
        assert "\n" not in str(error)


def test_a_config_without_its_weights_builds_nothing(directory, monkeypatch):
    """`{"model_type": "llama"}` is a model of 7 billion weights."""
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    assert "the weight file lacks model.layers.10.input_layernorm.weight" in refused(directory)


_ELSEWHERE = ["m.bin", "m.pt", "../m.safetensors", "sub/m.safetensors", "/etc/passwd", 5, [], "none.safetensors"]


@pytest.mark.parametrize(
    "index",
    [[], 5, {}, {"weight_map": 5}, {"weight_map": {}}, *({"metadata": {}, "weight_map": {"a": name}} for name in _ELSEWHERE)],
)
def test_an_index_names_safetensors_of_its_directory_and_nothing_else(directory, index):
    """A pickle, or a file of somebody else's, must not be opened whatever an index says."""
    tensors = load_file(directory / "model.safetensors")
    for elsewhere in (directory.parent / "m.safetensors", directory / "sub" / "m.safetensors"):
        elsewhere.parent.mkdir(exist_ok=True)
        save_file(tensors, elsewhere, metadata={"format": "pt"})
    for pickled in ("m.bin", "m.pt"):
        torch.save(tensors, directory / pickled)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(directory).startswith(f"cannot load the model {str(directory)!r}: ")


def test_shards_are_loaded_by_their_index(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    places = {key: f"part-{number % 2}.safetensors" for number, key in enumerate(tensors)}
    for part in set(places.values()):
        save_file({key: tensors[key] for key in tensors if places[key] == part}, directory / part, metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    loaded = load_causal_lm(str(directory), torch.float32, CPU)
    assert all(loaded.state_dict()[key].equal(tensor) for key, tensor in tensors.items())


def test_a_model_of_the_hub_is_loaded_from_where_it_was_downloaded(tmp_path, monkeypatch):
    hub = tmp_path / "models--someone--model"  # as a download leaves it
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text("0" * 40)
    tiny_model(eos_token_id=7).save_pretrained(hub / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    loaded = load_causal_lm("someone/model", torch.float32, CPU)
    assert loaded.lm_head.weight.equal(tiny_model().lm_head.weight) and loaded.generation_config.eos_token_id == 7


@pytest.mark.parametrize(
    "content", [[], 5, None, "x", {"eos_token_id": "x"}, {"eos_token_id": [1, "x"]}, {"eos_token_id": {}}, {"eos_token_id": True}]
)
def test_a_damaged_generation_config_is_one_line(directory, content):
    """It names the tokens that end an answer; believed, a text runs on."""
    (directory / "generation_config.json").write_text(content if content == "x" else json.dumps(content))
    assert "generation_config.json" in refused(directory)
    with pytest.raises(Pard2Error, match="generation_config.json"):
        meta_target(str(directory))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "content",
    ["[]", "5", "null", "{", "x", "[" * 100_000, '{"chat_template": 5}', '{"model_max_length": "x"}', '{"model": 5}', '{"added_tokens": [5]}'],
)
def test_any_damage_to_a_tokenizer_is_one_line_or_none(directory, file, content):
    byte_tokenizer().save_pretrained(directory)
    (directory / file).write_text(content)
    try:
        assert load_tokenizer(str(directory)).get_vocab()
    except Pard2Error as error:
        assert str(error).startswith(f"cannot load the model {str(directory)!r}: ") and "\n" not in str(error)
    else:
        assert content.startswith("{") and file != "tokenizer.json"


def test_a_name_that_is_too_long_for_a_file(tmp_path):
    assert "no model" in refused(str(tmp_path / ("x" * 300)))


def test_a_dtype_or_device_nobody_knows():
    with pytest.raises(Pard2Error, match="`dtype` 'float8' is not one of float32, bfloat16, float16"):
        parse_dtype("float8")
    with pytest.raises(Pard2Error, match="`device` 'warp' is not a device; say cpu, cuda or cuda:N"):
        parse_device("warp")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(Pard2Error, match="`device` cuda: torch sees no CUDA device here; say `device` cpu"):
        parse_device("cuda")
