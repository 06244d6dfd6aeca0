"""The warning about figures that are too good to be true: what honest drafts show must pass,
what a leak shows must not."""

import pytest

from pard2.train.plausibility import implausible


def decoded(length: float) -> list[dict]:
    return [{"method": "pard2-td", "acceptance_length": length}, {"method": "pard2-ti", "acceptance_length": 1.0}]


SHIPPED = [0.56, 0.34, 0.19, 0.12, 0.10, 0.09]  # of the embedded draft, which decodes GSM8K at 1.8
PUBLISHED = [0.9 - 0.01 * depth for depth in range(16)]  # about what an acceptance length of 7 takes


@pytest.mark.parametrize(
    ("accuracy", "length"),
    [(SHIPPED, 1.8), (PUBLISHED, 6.0), (PUBLISHED, 7.7), ([0.0] * 16, 1.0), ([0.1] * 16, 1.1), ([0.9, 0.89], 2.7), ([0.95], 1.9), (SHIPPED, None)],
)
def test_an_honest_draft_is_suspected(accuracy, length):
    assert implausible(accuracy, None if length is None else decoded(length)) is None


@pytest.mark.parametrize(
    ("accuracy", "length", "said"),
    [
        ([0.99] * 16, None, "accuracy at depth 0 is 99%"),
        ([0.7] + [0.99] * 15, None, "does not fall with depth (70% at depth 0, 99% at depth 15)"),
        ([0.9] * 8, None, "does not fall with depth"),
        (PUBLISHED, 1.2, "promises an acceptance length of 6.7, decoding held-out prompts gives 1.2 (pard2-td)"),
        ([0.8, 0.7, 0.6], 1.3, "promises an acceptance length of 2.7"),
        ([0.99] * 16, 1.1, "decoding held-out prompts gives 1.1"),  # the strongest sign is the one that is told
    ],
)
def test_a_leak_goes_unnoticed(accuracy, length, said):
    warning = implausible(accuracy, None if length is None else decoded(length))
    assert warning is not None and said in warning.replace("%", "%")
    assert "\n" not in warning and "loop.attention=dense" in warning


def test_the_mode_without_features_is_held_against_the_forecast():
    """Training shows features to nine conversations of ten; a draft that needs them decodes badly
    without, and that is no leak."""
    assert implausible(PUBLISHED, decoded(7.0)) is None
