"""Whatever a JSON text from outside holds, it is a value or one line."""

import os

import pytest

from pard2.errors import Pard2Error
from pard2.reading import check_text, parse_json, read_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        (b'\xef\xbb\xbf{"a": "\xc3\xa9"}', {"a": "é"}),
        ("\ufeff5", 5),
        (r'"\ud83d\ude00"', "😀"),
        (r'"\\ud83d"', "\\ud83d"),
        ("9" * 4000, int("9" * 4000)),
    ],
)
def test_what_is_json_is_read(text, value):
    assert parse_json(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON: Expecting property name"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8 text"),
        ("[" * 100_000, "is nested too deeply"),
        ("9" * 5000, "holds a number of too many digits"),
        (r'{"a": ["x\ud83d y"]}', r"holds \\ud83d, half of a surrogate pair"),
        (r'{"\udc00": 1}', r"holds \\udc00, half of a surrogate pair"),
        ('"a\ud83d"', r"holds \\ud83d, half of a surrogate pair"),
        ("", "is not JSON: Expecting value"),
    ],
)
def test_what_is_none_is_told_in_one_line(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_half_of_a_pair_is_no_text():
    check_text("ü 😀")
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        check_text("a\udc80b")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    whole = tmp_path / "whole.json"
    whole.write_text('{"a": 1}')
    assert read_json(whole) == {"a": 1}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "none.json", tmp_path, pipe, tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(Pard2Error) as caught:
            read_json(path)
        assert "\n" not in str(caught.value)
    whole.write_text("[1,")
    with pytest.raises(Pard2Error, match=r"whole\.json is not JSON"):
        read_json(whole)
