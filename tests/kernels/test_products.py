"""Our own products against dequantised weights in float64, and against themselves in other company."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2.errors import Pard2Error
from pard2.kernels.packed import PackedLinear
from pard2.kernels.weight_format import has_panels

pytestmark = pytest.mark.skipif(not has_panels(), reason="no numba, or a processor that our kernels are not written for")
if has_panels():
    from pard2.kernels.panels import Panels, quantised
    from pard2.kernels.products import PANEL, multiply

FORMS = ["panels", "int8"]


def matrix(outputs: int, inputs: int, bias: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(outputs + 1000 * inputs)
    weight = torch.randn(outputs, inputs, generator=generator).bfloat16()
    return weight, torch.randn(outputs, generator=generator).bfloat16() if bias else None


@pytest.mark.parametrize("form", FORMS)
@given(outputs=st.integers(1, 150), inputs=st.integers(1, 70), rows=st.integers(1, 40), bias=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_product_is_that_of_the_weights_it_holds(form, outputs, inputs, rows, bias):
    """Odd sizes, biases, and more rows than one block takes."""
    weight, offset = matrix(outputs, inputs, bias)
    layer, x = PackedLinear(weight, offset, form), torch.randn(rows, inputs)
    assert form == "int8" or torch.equal(layer.weight, weight.float())
    expected = x.double() @ layer.weight.double().T + (0 if offset is None else offset.double())
    got = layer(x)
    assert got.dtype == torch.float32 and got.shape == (rows, outputs)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), [(960, 576), (576, 1536), (130, 67)])
def test_a_row_comes_out_the_same_in_any_company(form, outputs, inputs):
    layer, x = PackedLinear(*matrix(outputs, inputs), form), torch.randn(40, inputs)
    alone = torch.cat([layer(row[None]) for row in x])
    for rows in (*range(2, 17), 25, 40):
        assert torch.equal(layer(x[:rows]), alone[:rows])
    assert torch.equal(layer(x.flip(0)), alone.flip(0))


@pytest.mark.parametrize("form", FORMS)
def test_a_row_comes_out_the_same_in_any_number_of_threads(form):
    layer, x = PackedLinear(*matrix(400, 96), form), torch.randn(5, 96)
    alone = layer(x)
    try:
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(layer(x), alone)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("form", FORMS)
def test_every_output_is_one_chain_of_fused_multiply_adds(form):
    """Hence the bits do not depend on how wide a processor's vectors are.

    Float64 holds a product of two float32 numbers whole, so that rounding each sum once is what a
    fused multiply-add does, double rounding aside.
    """
    weight, offset = matrix(7, 33, bias=True)
    panels, x = Panels(weight, offset, int8=form == "int8"), torch.randn(1, 33)
    held, scale = quantised(weight) if form == "int8" else (weight.float(), torch.ones(7))
    for output, got in enumerate(panels.product(x)[0]):
        total = np.float32(0)
        for a, b in zip(x[0].numpy(), held[output].numpy(), strict=True):
            total = np.float32(np.float64(a) * np.float64(b) + np.float64(total))
        assert got == np.float32(np.float64(total) * np.float64(scale[output]) + np.float64(offset[output]))


def test_int8_weights_are_the_nearest_ones_of_their_scale():
    weight, _ = matrix(50, 64)
    weight[3] = 0
    values, scale = quantised(weight)
    assert values.abs().amax(1).tolist() == [0 if row == 3 else 127 for row in range(50)]
    assert ((values * scale[:, None] - weight.float()).abs() <= scale[:, None] * 0.501).all()
    layer = PackedLinear(weight, None, "int8")
    assert (layer(torch.randn(4, 64))[:, 3] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_int8_cannot_hold_what_is_no_number(value):
    weight, _ = matrix(4, 8)
    weight[2, 5] = value
    with pytest.raises(Pard2Error, match=r"^a matrix \[4, 8\] holds NaN or infinity, which int8 cannot$"):
        PackedLinear(weight, None, "int8")


def test_damaged_bfloat16_weights_show_as_nan():
    weight, _ = matrix(40, 16)
    weight[2, 5] = float("nan")
    got = PackedLinear(weight, None, "panels")(torch.ones(3, 16))
    assert got.isnan().nonzero()[:, 1].tolist() == [2, 2, 2]


def test_a_part_writes_its_own_panels_alone():
    """Another thread may be writing the others."""
    panels, x = Panels(*matrix(5 * PANEL, 24)), np.ones((3, 24), np.float32)
    out = np.full((3, panels.padded_features), 7, np.float32)
    multiply(panels.like, panels.numbers, x, out, 2, 4)
    assert (out[:, : 2 * PANEL] == 7).all() and (out[:, 4 * PANEL :] == 7).all() and (out[:, 2 * PANEL : 4 * PANEL] != 7).all()


def test_a_product_of_no_rows_is_empty():
    assert PackedLinear(*matrix(40, 16), "int8")(torch.zeros(2, 0, 16)).shape == (2, 0, 40)
