"""A GGUF file read straight into int8 is the model that its expanded form becomes in int8."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pard2 import Engine, SamplingParams
from pard2.checkpoints.gguf import dequantised
from pard2.checkpoints.loading import load_target
from pard2.errors import Pard2Error
from pard2.kernels.weight_format import has_panels
from tiny import tiny_model

pytestmark = pytest.mark.skipif(not has_panels() or importlib.util.find_spec("gguf") is None, reason="needs gguf, numba and a processor for int8")
if importlib.util.find_spec("gguf"):
    from gguf_files import write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PARD2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(tmp_path: Path, quantisation: str, architecture: str = "llama", **more) -> str:
    extra = {"head_dim": 128} if architecture == "qwen3" else {}  # all that transformers takes for it from a GGUF file
    model = tiny_model(architecture, layers=2, hidden=64, vocab=96, tie_word_embeddings=architecture == "qwen3", **extra)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    write_gguf(model, tmp_path / "tiny.gguf", quantisation, **more)
    return str(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_0", "F16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_straight_way_leads_to_the_same_model(tmp_path, cache, architecture, quantisation, dtype):
    name = written(tmp_path, quantisation, architecture)
    straight = load_target(name, dtype, "cpu", "int8")
    assert not any(file.suffix == ".safetensors" for file in cache.rglob("*")), "no expanded copy is kept"
    around = load_target(str(dequantised(Path(name))), dtype, "cpu", "int8")
    ids = torch.tensor([[5, 9, 2, 7, 7, 1]])
    assert torch.equal(straight.forward(ids).logits, around.forward(ids).logits)
    texts = [Engine(one, None, "ar").generate([[5, 9, 2]], SamplingParams(max_tokens=12, ignore_eos=True))[0].token_ids for one in (straight, around)]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
    assert list(straight.identity.values())[1] == list(around.identity.values())[1]
    configs = [
        {key: value for key, value in one.config.to_diff_dict().items() if key not in ("architectures", "dtype")} for one in (straight, around)
    ]
    assert straight.eos_token_ids == around.eos_token_ids and configs[0] == configs[1]
    assert straight.tokenizer.get_vocab() == around.tokenizer.get_vocab()
    assert straight.origin.startswith(f"read straight from {quantisation}, off its weights by ") and straight.weight_format == "int8"


def test_how_far_int8_is_from_the_file_is_said(tmp_path, cache):
    name = written(tmp_path, "Q8_0")
    plain, int8 = (load_target(str(dequantised(Path(name))), "float32", "cpu", form) for form in ("plain", "int8"))
    squares = torch.zeros(2, dtype=torch.float64)
    for layer, other in zip(plain.model.model.layers, int8.model.model.layers, strict=True):
        exact, kept = layer.mlp.down_proj.weight.double(), other.mlp.down_proj.weight.double()
        squares += torch.stack([(exact - kept).square().sum(), exact.square().sum()])
    said = float(re.search(r"off its weights by (\d+\.\d+)% ", load_target(name, "float32", "cpu", "int8").origin)[1]) / 100
    assert said == pytest.approx(float((squares[0] / squares[1]).sqrt()), rel=0.25) and said > 0


def test_what_is_expanded_is_said(tmp_path):
    assert load_target(written(tmp_path, "Q4_0"), "bfloat16", "cpu").origin == "Q4_0 expanded to bfloat16"
    assert load_target(str(dequantised(tmp_path / "tiny.gguf")), "bfloat16", "cpu").origin == ""


def test_a_file_that_lacks_a_weight(tmp_path):
    name = written(tmp_path, "Q8_0", leave_out="blk.1.ffn_down.weight")
    with pytest.raises(Pard2Error, match=r"cannot be read as a GGUF model: model.layers.1.mlp.down_proj.weight, \[64, 128\], is not there$"):
        load_target(name, "bfloat16", "cpu", "int8")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(200)])
def test_a_file_that_is_no_gguf(tmp_path, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(Pard2Error, match="cannot be read as a GGUF model"):
        load_target(str(tmp_path / "bad.gguf"), "bfloat16", "cpu", "int8")


def test_an_architecture_without_our_decoder(tmp_path, monkeypatch):
    monkeypatch.setattr("pard2.checkpoints.weight_choice.is_llama_like", lambda model: False)
    with pytest.raises(Pard2Error, match="^`weights` int8 needs a model of Llama's kind"):
        load_target(written(tmp_path, "Q8_0"), "bfloat16", "cpu", "int8")


PEAK = """
import sys, threading, time
from pard2.checkpoints.loading import load_target
from pard2.kernels import llama_layers

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

load_target(sys.argv[1], "bfloat16", "cpu", "int8")  # imports, and what is compiled
before, most, going = anonymous(), 0, True

def watch():
    global most
    while going:
        most = max(most, anonymous())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
target = load_target(sys.argv[2], "bfloat16", "cpu", "int8")
going = False
watcher.join()
print(most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_0"])
def test_the_peak_of_memory_is_that_of_the_int8_weights_and_half_of_it(tmp_path, quantisation):
    small = written(tmp_path, quantisation)
    model = tiny_model(layers=14, hidden=512, vocab=1024, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=4)
    write_gguf(model, tmp_path / "large.gguf", quantisation)
    bytes_of_int8 = sum(parameter.numel() for name, parameter in model.named_parameters() if parameter.ndim == 2)
    run = subprocess.run([sys.executable, "-c", PEAK, small, str(tmp_path / "large.gguf")], capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr[-2000:]
    assert 0.8 * bytes_of_int8 < int(run.stdout.splitlines()[-1]) < 1.5 * bytes_of_int8
