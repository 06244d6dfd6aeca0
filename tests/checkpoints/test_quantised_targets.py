"""A target whose layers are a quantisation's own says with a draft what it says without.

BitNet's is the one method that transformers carries out without a further package, on a CPU too: ternary
weights, four to a byte, and inputs rounded to int8. What is tested of it holds for every method: its layers
are left alone.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pard2
from pard2 import Engine, SamplingParams
from pard2.checkpoints.inspection import fit
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.errors import Pard2Error, Pard2Warning
from pard2.models.target import Target
from pard2.verify.greedy import audit
from tiny import random_prompts, tiny_draft, tiny_model

pytest.importorskip("accelerate")  # transformers asks for it


def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """BitNet's codes [out / 4, in] of a matrix [out, in], and what their products are divided by."""
    scale = 1 / weight.abs().mean()
    codes = (weight * scale).round().clamp(-1, 1).add(1).to(torch.uint8).unflatten(0, (4, -1))
    return codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6, scale[None]


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> tuple[str, str]:
    """A quantised target, and a draft cut out of the unquantised one."""
    place: Path = tmp_path_factory.mktemp("models")
    plain = tiny_model(layers=3)
    save_draft(tiny_draft(Target(tiny_model(layers=3)), [0, 1], projection=0.05), place / "draft")
    plain.save_pretrained(place / "target")
    weights = load_file(place / "target" / "model.safetensors")
    for key in [key for key in weights if key.endswith("_proj.weight")]:
        weights[key], weights[f"{key}_scale"] = packed(weights[key])
    save_file(weights, place / "target" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((place / "target" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet"}
    (place / "target" / "config.json").write_text(json.dumps(config))
    return str(place / "target"), str(place / "draft")


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """transformers compiles these layers, which takes minutes and changes nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_is_that_of_the_quantised_model(directories, dtype):
    target = load_target(directories[0], dtype, "cpu", sequences=1)
    kinds = {type(module).__name__ for name, module in target.model.named_modules() if name.endswith("_proj")}
    assert kinds == {"BitLinear"} and type(target.model.lm_head) is nn.Linear and target.weight_format == "plain"
    assert target.model.dtype == getattr(torch, dtype)
    draft = load_draft(directories[1], target, target.model.dtype)
    prompts, accepted, texts = random_prompts(4, seed=3), 0, set()
    for method in ("pard2-ti", "pard2-td"):
        for one in audit(Engine(target, draft, method, 5), prompts, 24, near_tie=0.2, together=True):
            assert one.lossless, method
            accepted += one.accepted
    (one,) = Engine(target, draft).generate([prompts[0]], SamplingParams(max_tokens=24))
    texts = {tuple(out.token_ids) for out in (one, *Engine(Target(tiny_model(layers=3))).generate([prompts[0]], SamplingParams(max_tokens=24)))}
    assert accepted > 5 and len(texts) == 2, "nothing was drafted, or the codes were not those that were read"


def test_a_draft_of_the_unquantised_model_is_no_strangers(directories):
    """A warning said that it was made for another target."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Pard2Warning)
        load_draft(directories[1], load_target(directories[0], "float32", "cpu"), torch.float32)
        assert fit(Path(directories[1]), directories[0], {"pard2-td": True}) == {"pard2-td": "yes"}


def test_a_users_own_quantised_model_generates_with_a_draft(directories):
    model: Any = load_target(directories[0], "float32", "cpu").model
    for prompt in random_prompts(2, seed=3):
        ids = torch.tensor([prompt])
        plain = model.generate(ids, max_new_tokens=20)
        found = model.generate(ids, max_new_tokens=20, custom_generate=pard2.transformers.generate, draft=directories[1], draft_tokens=4)
        assert torch.equal(found, plain)


def test_it_is_not_quantised_twice(directories):
    with pytest.raises(Pard2Error, match=r"^`weights` int8: .*/target' is quantised already; leave `weights` away, or name the unquantised model$"):
        load_target(directories[0], "bfloat16", "cpu", "int8")
