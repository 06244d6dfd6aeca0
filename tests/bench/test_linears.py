"""The matrices that the memory-traffic floor is measured with."""

import pytest
import torch

from pard2.runtime.llama_decoder import LlamaDecoder
from tiny import tiny_model


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_floor_of_fewer_or_other_matrices(architecture):
    model = tiny_model(architecture)
    linears = LlamaDecoder(model).linears()
    inner = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    assert sum(inputs * outputs for _, inputs, outputs in linears) == inner
    for product, inputs, outputs in linears:
        assert product(torch.ones(3, inputs)).shape == (3, outputs)
