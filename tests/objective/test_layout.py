"""Slots and their mask, against a construction from the words of the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pard2.objective.layout import SlotLayout, attention_mask, build_layout, slot_features, slot_tokens


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[list[Tensor]]]:
    """Documents of up to 6 tokens with any nested choice of masks, up to 4 deep; anchors of -1 are allowed."""
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


def seen_by_hand(layout: SlotLayout, slot: int) -> set[int]:
    """Whom a slot attends to: every real token at its anchor or before, and the masks of its own chain up to itself."""
    document, anchor, depth = (int(part[slot]) for part in (layout.document, layout.anchor, layout.depth))
    wanted = {(document, a, 0) for a in range(anchor + 1)} | {(document, anchor, d) for d in range(1, depth + 1)}
    places = {key: i for i, key in enumerate(zip(layout.document.tolist(), layout.anchor.tolist(), layout.depth.tolist(), strict=True))}
    return {places[key] for key in wanted}


@settings(max_examples=60, deadline=None)
@given(rows())
def test_mask_is_the_definition(row):
    layout = build_layout(*row)
    mask = attention_mask(layout)
    for slot in range(len(layout)):
        assert set(mask[slot].nonzero()[:, 0].tolist()) == seen_by_hand(layout, slot)


@settings(max_examples=60, deadline=None)
@given(rows())
def test_no_slot_sees_what_it_predicts_or_another_document(row):
    lengths, kept = row
    layout = build_layout(lengths, kept)
    mask = attention_mask(layout)
    same = layout.document[:, None] == layout.document[None, :]
    assert not (mask & ~same).any()
    real = (layout.depth == 0)[None, :]
    # Between the anchor and the predicted token nothing real may shine through.
    assert not (mask & real & (layout.position[None, :] > layout.anchor[:, None])).any()
    assert not (mask & (layout.position[None, :] > layout.position[:, None])).any()
    assert mask.diagonal().all()  # a row without any key would be NaN


@settings(max_examples=60, deadline=None)
@given(rows())
def test_every_real_token_once_and_every_mask_as_asked(row):
    lengths, kept = row
    layout = build_layout(lengths, kept)
    slots = list(zip(layout.document.tolist(), layout.anchor.tolist(), layout.depth.tolist(), strict=True))
    wanted = [(i, a, 0) for i, n in enumerate(lengths) for a in range(n)]
    wanted += [(i, a, d) for i, masks in enumerate(kept) for d, anchors in enumerate(masks, 1) for a in anchors.tolist()]
    assert sorted(slots) == sorted(wanted)


def two_documents() -> SlotLayout:
    return build_layout([3, 4], [[torch.tensor([0, 1])], [torch.tensor([-1, 0, 2]), torch.tensor([0])]])


def test_positions_start_anew_in_a_packed_document():
    layout = two_documents()
    assert layout.document.tolist() == [0] * 5 + [1] * 8
    assert layout.position.tolist() == [0, 1, 2, 1, 2, 0, 1, 2, 3, 0, 1, 3, 2]


def test_predicted_token_lies_one_past_the_slot():
    layout = two_documents()
    assert layout.predicted_index.tolist() == [1, 2, 3, 2, 3, 4, 5, 6, 7, 4, 5, 7, 6]
    assert layout.anchor_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 2, 3, 5, 3]


def test_tokens_are_never_shifted():
    layout = two_documents()
    tokens = slot_tokens(layout, torch.arange(10, 17), mask_token=99)
    assert tokens.tolist() == [10, 11, 12, 99, 99, 13, 14, 15, 16, 99, 99, 99, 99]


def test_features_are_shifted_by_one_and_masks_share_their_anchors():
    layout = two_documents()
    features = slot_features(layout, torch.arange(1.0, 8.0)[:, None])[:, 0]
    # f[-1] = 0 at each document's start, also for the chain without anchor
    assert features.tolist() == [0, 1, 2, 0, 1, 0, 4, 5, 6, 0, 0, 5, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_feature_elsewhere_does_not_leak_into_first_slots(bad):
    """0 * NaN is NaN: the zero feature must be chosen, not multiplied."""
    features = slot_features(two_documents(), torch.full((7, 2), bad))
    assert (features[[0, 3, 5, 9, 10, 12]] == 0).all()
