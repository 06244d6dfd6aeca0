"""Attention over slots by blocks against softmax(Q K^T) V under the dense mask: values, gradients, memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import rows, thinned, two_documents
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pard2.objective.block_mask import block_mask, block_structure
from pard2.objective.layout import SlotLayout, attention_mask, build_layout, key_spans
from pard2.objective.slot_attention import query_blocks, slot_attention

LAYOUTS = {
    "one slot": build_layout([1], [[]]),
    "documents without masks": build_layout([40, 7], [[], []]),
    "anchor -1": two_documents(),
    "one document": thinned([90]),
    "documents shorter than a block": thinned([3, 1, 40, 5, 9, 2]),
    "masks in the answers alone": thinned([60, 45], prompt=25),
    "every chain whole": thinned([20, 12], 6, retention=1.0),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def inputs(slots: int, heads: int, groups: int, width: int, value_width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key, value, and a gradient of the output, in memory position by position, as in transformers."""
    generator = torch.Generator().manual_seed(slots)
    shapes = (heads, width), (groups, width), (groups, value_width), (heads, value_width)
    tensors = [torch.randn(slots, *shape, dtype=torch.float64, generator=generator).to(dtype).transpose(0, 1) for shape in shapes]
    return [tensor.requires_grad_() for tensor in tensors[:3]] + tensors[3:]


def readable(query: Tensor, key: Tensor, value: Tensor, layout: SlotLayout, scale: float) -> Tensor:
    groups = len(query) // len(key)
    scores = scale * query @ key.repeat_interleave(groups, 0).mT
    return scores.masked_fill(~attention_mask(layout), float("-inf")).softmax(-1) @ value.repeat_interleave(groups, 0)


def differences(one: Tensor, other: Tensor, gradient: Tensor, of: list[Tensor]) -> list[float]:
    """Largest differences of two outputs and of their gradients."""
    pairs = zip((one.detach(), *torch.autograd.grad(one, of, gradient)), (other.detach(), *torch.autograd.grad(other, of, gradient)), strict=True)
    return [float((a - b).abs().max()) for a, b in pairs]


@layouts
@pytest.mark.parametrize("block", [1, 5, 16, 128])
def test_blocks_compute_what_the_mask_says(layout: SlotLayout, block: int):
    query, key, value, gradient = inputs(len(layout), 4, 2, 8, 8)
    fast = slot_attention(query, key, value, key_spans(layout), 0.3, block)
    assert max(differences(fast, readable(query, key, value, layout, 0.3), gradient, [query, key, value])) < 1e-12


@settings(max_examples=40, deadline=None)
@given(rows(), st.integers(1, 9))
def test_any_row_in_blocks_of_any_size(row, block):
    layout = build_layout(*row)
    query, key, value, gradient = inputs(len(layout), 2, 1, 4, 4)
    fast = slot_attention(query, key, value, key_spans(layout), 0.5, block)
    assert max(differences(fast, readable(query, key, value, layout, 0.5), gradient, [query, key, value])) < 1e-12


@pytest.mark.parametrize(("heads", "groups", "width", "value_width"), [(9, 3, 8, 8), (4, 4, 8, 8), (5, 1, 8, 8), (4, 2, 8, 12)])
def test_heads_of_every_grouping(heads, groups, width, value_width):
    """A query head that reads its neighbour's keys is as plausible as the right one."""
    layout = LAYOUTS["masks in the answers alone"]
    query, key, value, gradient = inputs(len(layout), heads, groups, width, value_width)
    fast = slot_attention(query, key, value, key_spans(layout), 0.3, 32)
    assert max(differences(fast, readable(query, key, value, layout, 0.3), gradient, [query, key, value])) < 1e-12


def test_bfloat16_loses_no_more_than_its_own_rounding():
    """Softmax or sums of keys' gradients in bfloat16 would be off by several times as much."""
    layout = thinned([150])
    query, key, value, gradient = inputs(len(layout), 3, 1, 16, 16, torch.bfloat16)
    fast = slot_attention(query, key, value, key_spans(layout), 1.0)
    found = [fast, *torch.autograd.grad(fast, (query, key, value), gradient)]
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    output = readable(*exact, layout, 1.0)
    for one, other in zip(found, [output, *torch.autograd.grad(output, exact, gradient.double())], strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-3)  # bfloat16 rounds to 8 bits


class Largest(TorchDispatchMode):
    """Notes the most elements that any operation's result has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


def test_nothing_is_as_large_as_the_square():
    layout = thinned([400], 8)
    query, key, value, gradient = inputs(len(layout), 3, 1, 8, 8, torch.float32)
    spans, slots = key_spans(layout), len(layout)
    with Largest() as largest:
        slot_attention(query, key, value, spans, 0.3).backward(gradient)
    assert 3 * 400 < largest.elements < slots**2 / 5
    with Largest() as largest:
        block_mask(spans)
    assert largest.elements < slots**2 / 50
    with Largest() as largest:
        readable(query, key, value, layout, 0.3)
    assert largest.elements >= 3 * slots**2  # the measure sees a square where there is one


@layouts
@pytest.mark.parametrize("size", [1, 7, 32])
def test_query_blocks_hold_every_slot_once_and_all_that_it_sees(layout: SlotLayout, size: int):
    mask, seen = attention_mask(layout), torch.zeros(len(layout), len(layout), dtype=torch.bool)
    expected = 0
    for block in query_blocks(key_spans(layout), size):
        assert block.first == expected < block.stop <= block.first + size
        expected = block.stop
        queries = slice(block.first, block.stop)
        assert len({(int(layout.document[i]), bool(layout.depth[i] > 0)) for i in range(block.first, block.stop)}) == 1
        assert mask[queries, block.begin : block.clear].all()
        seen[queries, block.begin : block.end] = seen[queries, block.chain : block.stop] = True
    assert expected == len(layout)
    assert not (mask & ~seen).any()


def brute_force(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Blocks with some and with all of their places True; what lies past the end is False."""
    blocks = -(-len(mask) // size)
    square = torch.zeros(blocks * size, blocks * size, dtype=torch.bool)
    square[: len(mask), : len(mask)] = mask
    tiles = square.view(blocks, size, blocks, size)
    return tiles.any(3).any(1), tiles.all(3).all(1)


@layouts
@pytest.mark.parametrize("size", [1, 2, 7, 16, 128])
def test_block_structure_is_that_of_the_mask(layout: SlotLayout, size: int):
    needed, full = block_structure(key_spans(layout), size)
    expected_needed, expected_full = brute_force(attention_mask(layout), size)
    assert needed.equal(expected_needed) and full.equal(expected_full)


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(1, 9))
def test_block_structure_of_any_row(row, size):
    layout = build_layout(*row)
    needed, full = block_structure(key_spans(layout), size)
    expected_needed, expected_full = brute_force(attention_mask(layout), size)
    assert needed.equal(expected_needed) and full.equal(expected_full)


@layouts
def test_block_mask_lists_the_blocks(layout: SlotLayout):
    mask = block_mask(key_spans(layout), 16)
    assert mask.shape == (1, 1, len(layout), len(layout))
    needed, full = brute_force(attention_mask(layout), 16)
    assert mask.to_dense()[0, 0].bool().equal(needed)
    for row in range(len(full)):
        assert sorted(mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]].tolist()) == full[row].nonzero()[:, 0].tolist()


@pytest.fixture
def flex_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's unfused form has gradients, but is refused them on a CPU."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda query, key, value: None)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.usefixtures("flex_gradients")
@pytest.mark.parametrize("name", ["anchor -1", "documents shorter than a block", "masks in the answers alone"])
def test_flex_attention_computes_what_the_mask_says(name: str):
    layout = LAYOUTS[name]
    query, key, value, gradient = inputs(len(layout), 4, 2, 8, 8)
    mask = block_mask(key_spans(layout), 32)
    flex = flex_attention(query[None], key[None], value[None], block_mask=mask, scale=0.3, enable_gqa=True)[0]
    assert max(differences(flex, readable(query, key, value, layout, 0.3), gradient, [query, key, value])) < 1e-12
