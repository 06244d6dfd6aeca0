"""Words at the edge of a terminal."""

import random
import textwrap

import pytest
from rich.style import Style
from rich.text import Text

from pard2.cli.word_wrap import WordWrap


def wrapped(text: str, width: int, sizes) -> str:
    wrap, shown, rest = WordWrap(width), "", text
    while rest:
        size = sizes()
        shown += wrap.add(Text(rest[:size])).plain
        rest = rest[size:]
    return shown + wrap.end().plain


@pytest.mark.parametrize("width", [12, 17, 80])
def test_lines_break_between_words_wherever_the_pieces_end(width):
    text = "It is a truth universally known that a single man in possession of a good fortune must be in want of a wife."
    pick = random.Random(1)
    for sizes in (lambda: 1, lambda: 3, lambda: pick.randint(1, 9), lambda: len(text)):
        assert wrapped(text, width, sizes) == "\n".join(textwrap.wrap(text, width, break_long_words=False))


def test_what_the_text_breaks_itself_and_its_indentation_stay():
    code = "def f():\n    return 1\n\n\tx\n"
    assert wrapped(code, 20, lambda: 2) == code


def test_a_tab_takes_its_room():
    assert wrapped("ab\tcd", 10, lambda: 1) == "ab\tcd" and wrapped("ab\tcde", 10, lambda: 1) == "ab\ncde"


def test_a_word_longer_than_a_line_does_not_wait_for_its_end():
    wrap = WordWrap(8)
    assert wrap.add(Text("see " + "x" * 8)).plain == "see\n" + "x" * 8


def test_wide_characters_need_no_spaces():
    wrap = WordWrap(6)
    assert wrap.add(Text("你好世界")).plain == "你好世\n界"


def test_a_word_waits_for_its_end_and_keeps_its_colours():
    wrap = WordWrap(20)
    piece = Text("one tw")
    piece.stylize("green", 0, 5)
    assert wrap.add(piece).plain == "one"
    rest = wrap.add(Text("o three"))
    assert rest.plain == " two"
    assert [rest.plain[s.start : s.end] for s in rest.spans if Style.parse(str(s.style)).color] == [" ", "t"]
    assert wrap.end().plain == " three"
