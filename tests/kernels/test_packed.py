"""Packed linear layers compute with the same bfloat16 values: in float32 by FBGEMM, with
bfloat16 products by oneDNN."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from pard2.errors import Pard2Error
from pard2.kernels import weight_format
from pard2.kernels.packed import PackedLinear, has_bfloat16_products
from pard2.kernels.weight_format import check_format, convert_linears, weight_formats
from tiny import tiny_model

needs_fbgemm = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch has no FBGEMM")
needs_bfloat16_products = pytest.mark.skipif(not has_bfloat16_products(), reason="this CPU multiplies no bfloat16 numbers")
IDS = torch.tensor([[5, 9, 2, 7, 7, 1]])


def bfloat16_values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16().float()


@needs_fbgemm
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_packed_layer_is_the_layer(bias, rows):
    torch.manual_seed(0)
    weight, x, offset = bfloat16_values(48, 64), torch.randn(2, rows, 64), torch.randn(48) if bias else None
    expected = nn.functional.linear(x.double(), weight.double(), None if offset is None else offset.double())
    got = PackedLinear(weight, offset, "fbgemm")(x)
    assert got.dtype == torch.float32 and got.shape == (2, rows, 48)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@needs_fbgemm
def test_tiny_weights_are_not_lost():
    """bfloat16 reaches far below float16: what gets lost must be less than float32's own rounding."""
    weight = torch.full((8, 64), 2.0**-20)
    weight[:, 0] = 1.0
    got = PackedLinear(weight, None, "fbgemm")(torch.ones(1, 64))
    torch.testing.assert_close(got, torch.full((1, 8), 1 + 63 * 2.0**-20), rtol=1e-7, atol=0)


@needs_fbgemm
@pytest.mark.parametrize("form", ["fbgemm", "panels"])
def test_a_packed_model_is_the_bfloat16_model_in_float32(form):
    torch.manual_seed(0)
    half = AutoModelForCausalLM.from_config(tiny_model(layers=3).config, dtype=torch.bfloat16).eval()
    exact = tiny_model(layers=3)
    exact.load_state_dict({key: tensor.float() for key, tensor in half.state_dict().items()})
    convert_linears(half, form)
    assert sum(isinstance(m, PackedLinear) for m in half.modules()) == 3 * 7 + 1
    with torch.no_grad():
        torch.testing.assert_close(half(IDS).logits, exact(IDS).logits, rtol=1e-4, atol=1e-4)


@needs_fbgemm
def test_weights_that_float16_cannot_hold_stay_plain():
    """They would become infinite."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = 1e6
    convert_linears(model, "fbgemm")
    assert isinstance(model[0], PackedLinear) and type(model[1]) is nn.Linear


@needs_bfloat16_products
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_packed_for_bfloat16_products_is_the_bfloat16_layer(bias, rows, dtype):
    """Of bfloat16 values that a float32 model holds, too, as a part of a packed target's head does."""
    torch.manual_seed(0)
    weight, offset = torch.randn(48, 64).bfloat16(), torch.randn(48).bfloat16() if bias else None
    x = torch.randn(2, rows, 64)
    layer = PackedLinear(weight.to(dtype), None if offset is None else offset.to(dtype), "onednn")
    assert layer(x).dtype == torch.float32
    assert torch.equal(layer.weight, weight.float())
    exact = nn.functional.linear(x.double(), weight.double(), None if offset is None else offset.double())
    plain = nn.functional.linear(x.bfloat16(), weight, offset)
    assert (layer(x) - exact).abs().max() <= 1.01 * (plain - exact).abs().max()


@needs_bfloat16_products
def test_rows_come_out_the_same_whatever_shares_their_pass():
    """Then what verification says of a token is what plain decoding says, bit for bit, in bfloat16, too."""
    torch.manual_seed(0)
    for outputs, inputs in ((960, 576), (576, 1536), (4096, 576)):
        layer, x = PackedLinear((torch.randn(outputs, inputs) / 24).bfloat16(), None, "onednn"), torch.randn(16, inputs)
        alone = torch.cat([layer(row[None]) for row in x])
        for rows in (2, 3, 7, 8, 16):
            assert torch.equal(layer(x[:rows]), alone[:rows])


@needs_bfloat16_products
def test_a_model_packed_for_bfloat16_products_is_no_less_exact_than_the_model():
    torch.manual_seed(0)
    half = AutoModelForCausalLM.from_config(tiny_model(layers=3).config, dtype=torch.bfloat16).eval()
    exact = tiny_model(layers=3)
    exact.load_state_dict({key: tensor.float() for key, tensor in half.state_dict().items()})
    with torch.no_grad():
        expected, plain = exact(IDS).logits, half(IDS).logits
        convert_linears(half, "onednn")
        assert (half(IDS).logits - expected).square().mean() <= (plain - expected).square().mean()


@pytest.mark.parametrize(
    ("capabilities", "dtype", "expected"),
    [
        ({"avx2": True, "f16c": True}, torch.bfloat16, {"fbgemm"}),
        ({"avx2": True, "f16c": True}, torch.float32, set()),
        ({"avx2": True, "f16c": True}, torch.float16, {"fbgemm"}),
        ({"avx2": True, "f16c": True, "avx512_bf16": True}, torch.bfloat16, {"fbgemm", "onednn"}),
        ({"avx2": True, "f16c": True, "amx_bf16": True}, torch.bfloat16, {"fbgemm", "onednn"}),
        ({"avx2": True, "f16c": True, "amx_bf16": True}, torch.float32, set()),
        ({"avx2": True, "f16c": True, "amx_bf16": True}, torch.float16, {"fbgemm"}),
        ({"avx2": True}, torch.bfloat16, set()),
        ({}, torch.bfloat16, set()),
    ],
)
@needs_fbgemm
@pytest.mark.parametrize("own", [True, False])
def test_a_cpu_has_the_formats_that_it_can_multiply(monkeypatch, capabilities, dtype, expected, own):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(weight_format, "has_panels", lambda: own)
    ours = ({"panels", "int8"} if dtype == torch.bfloat16 else {"int8"}) if own else set()
    assert set(weight_formats(torch.device("cpu"), dtype)) == {"plain"} | expected | ours
    assert weight_formats(torch.device("cuda"), dtype) == ("plain",)


def test_a_format_that_weights_do_not_have_is_one_line(monkeypatch):
    """Packed, float32 weights would be rounded, and on a GPU they would be nothing that it can multiply."""
    monkeypatch.setattr(weight_format, "has_panels", lambda: False)
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        check_format("plain", torch.device(device), dtype)
        for wanted in ("fbgemm", "panels", "int8", "int1"):
            with pytest.raises(Pard2Error, match=rf"^`weight_format` '{wanted}': {dtype} weights on {device} can be plain$"):
                check_format(wanted, torch.device(device), dtype)
