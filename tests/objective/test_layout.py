"""Slots and their mask, against a construction from the words of the definition."""

import pytest
import torch
from hypothesis import given, settings
from layouts import rows, two_documents

from pard2.objective import layout as layout_module
from pard2.objective.cod import keep_masks
from pard2.objective.layout import SlotLayout, attention_mask, build_layout, key_spans, slot_features, slot_tokens, spans_mask


def seen_by_hand(layout: SlotLayout, slot: int) -> set[int]:
    """Whom a slot sees: every real token up to its anchor, and the masks of its own chain up to itself."""
    document, anchor, depth = (int(part[slot]) for part in (layout.document, layout.anchor, layout.depth))
    wanted = {(document, a, 0) for a in range(anchor + 1)} | {(document, anchor, d) for d in range(1, depth + 1)}
    index = {key: i for i, key in enumerate(zip(layout.document.tolist(), layout.anchor.tolist(), layout.depth.tolist(), strict=True))}
    return {index[key] for key in wanted}


def test_the_picture_in_the_docstring_is_wrong():
    """Both tables are made anew, line by line: 5 tokens, an answer from x2 on, K = 3, nothing dropped."""
    kept = keep_masks(torch.tensor([False, False, True, True, True]), 3, 1.0, 0.1, None)
    layout = build_layout([5], [kept])
    tokens, features = slot_tokens(layout, torch.arange(5), -1).tolist(), slot_features(layout, torch.arange(1.0, 6.0)[:, None])[:, 0]
    mask = attention_mask(layout)
    drawn = [" ".join(line.split()) for line in layout_module.__doc__.splitlines()]
    for i in range(len(layout)):
        anchor, depth, position, predicted = (int(part[i]) for part in (layout.anchor, layout.depth, layout.position, layout.predicted_index))
        token, feature = "mask" if tokens[i] < 0 else f"x{tokens[i]}", f"f{int(features[i]) - 1}" if features[i] else "0"
        slot = f"{i} ({anchor}, {depth}) {position} {token} {feature} {f'x{predicted}' if predicted < 5 else '-'}"
        assert any(line == slot or line.startswith(f"{slot} not trained") for line in drawn), slot
        assert f"{i} ({anchor}, {depth}) {' '.join('x' if seen else '.' for seen in mask[i])}" in drawn
    untrained = [line for line in drawn if "not trained" in line]
    assert [line[0] for line in untrained] == ["0", "4"]


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


@settings(max_examples=60, deadline=None)
@given(rows())
def test_spans_are_the_mask(row):
    """What the fast kinds of attention go by says, slot by slot, what the definition says."""
    layout = build_layout(*row)
    assert spans_mask(key_spans(layout), len(layout)).equal(attention_mask(layout))


@settings(max_examples=60, deadline=None)
@given(rows())
def test_tokens_come_first_and_chains_stay_together(row):
    lengths, kept = row
    layout = build_layout(lengths, kept)
    assert layout.depth[: sum(lengths)].eq(0).all() and layout.anchor_index[: sum(lengths)].equal(torch.arange(sum(lengths)))
    masks = list(zip(*(part[sum(lengths) :].tolist() for part in (layout.document, layout.anchor, layout.depth)), strict=True))
    assert masks == sorted(masks) and 0 not in layout.depth[sum(lengths) :]


def test_positions_start_anew_in_a_packed_document():
    layout = two_documents()
    assert layout.document.tolist() == [0] * 3 + [1] * 4 + [0] * 2 + [1] * 4
    assert layout.position.tolist() == [0, 1, 2, 0, 1, 2, 3, 1, 2, 0, 1, 2, 3]


def test_predicted_token_lies_one_past_the_slot():
    layout = two_documents()
    assert layout.predicted_index.tolist() == [1, 2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7]
    assert layout.anchor_index.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 3, 5]


def test_tokens_are_never_shifted():
    layout = two_documents()
    tokens = slot_tokens(layout, torch.arange(10, 17), mask_token=99)
    assert tokens.tolist() == [10, 11, 12, 13, 14, 15, 16, 99, 99, 99, 99, 99, 99]


def test_features_are_shifted_by_one_and_masks_share_their_anchors():
    layout = two_documents()
    features = slot_features(layout, torch.arange(1.0, 8.0)[:, None])[:, 0]
    # f[-1] = 0 at each document's start, also for the chain without anchor
    assert features.tolist() == [0, 1, 2, 0, 4, 5, 6, 0, 1, 0, 0, 0, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_feature_elsewhere_does_not_leak_into_first_slots(bad):
    """0 * NaN is NaN: the zero feature must be chosen, not multiplied."""
    features = slot_features(two_documents(), torch.full((7, 2), bad))
    assert (features[[0, 3, 7, 9, 10, 11]] == 0).all()
