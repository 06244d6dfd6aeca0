"""Packed sequences of slots for tests."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from pard2.objective.cod import keep_masks
from pard2.objective.layout import SlotLayout, build_layout


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[list[Tensor]]]:
    """Documents of up to 6 tokens with any nested choice of masks, up to 4 deep; anchors may be -1."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    kept = []
    for length in lengths:
        anchors = draw(st.sets(st.integers(-1, length - 1)))
        masks = []
        for _ in range(draw(st.integers(0, 4))):
            masks.append(torch.tensor(sorted(anchors), dtype=torch.long))
            anchors = {a for a in anchors if draw(st.booleans())}
        kept.append(masks)
    return lengths, kept


def two_documents() -> SlotLayout:
    """Masks (0, 1), (1, 1) of the first document, and (-1, 1), (0, 1), (0, 2), (2, 1) of the second."""
    return build_layout([3, 4], [[torch.tensor([0, 1])], [torch.tensor([-1, 0, 2]), torch.tensor([0])]])


def thinned(lengths: list[int], draft_tokens: int = 16, retention: float = 0.7, prompt: int = 0, seed: int = 0) -> SlotLayout:
    """Slots as training lays them out: chains thinned by COD, none in a document's first `prompt` tokens."""
    generator = torch.Generator().manual_seed(seed)
    return build_layout(lengths, [keep_masks(torch.arange(n) >= prompt, draft_tokens, retention, 0.1, generator) for n in lengths])
