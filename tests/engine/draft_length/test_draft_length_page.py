"""The picture of docs/draft_length.md is what the rule says."""

from draft_length_picture import PAGE, picture


def test_the_picture_shows_another_rule():
    assert PAGE.read_text() == picture()
