"""Words that are not broken at the edge of the terminal, in text that comes in pieces."""

from rich.cells import cell_len
from rich.text import Text

_TAB = 8


class WordWrap:
    """Puts a line break before a word that would not fit its line.

    width: of the terminal, in cells.

    A word is kept back until it ends, or is as long as a line.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._column = 0
        self._gap = Text()  # what stands between the line and the word
        self._word = Text()

    def add(self, piece: Text) -> Text:
        """What may be shown now; styles are kept."""
        shown = Text()
        for index, character in enumerate(piece.plain):
            one = piece[index]
            if character == "\n":
                self._end_word(shown)
                shown.append_text(one)
                self._gap, self._column = Text(), 0
            elif character in " \t":
                self._end_word(shown)
                self._gap.append_text(one)
            else:
                wide = cell_len(character) > 1  # as in Chinese, where a line may end behind each character
                if wide:
                    self._end_word(shown)
                self._word.append_text(one)
                if wide or cell_len(self._word.plain) >= self._width:
                    self._end_word(shown)
        return shown

    def end(self) -> Text:
        """The last word."""
        shown = Text()
        self._end_word(shown)
        return shown

    def _end_word(self, shown: Text) -> None:
        if not self._word:
            return
        length, start = cell_len(self._word.plain), self._behind_gap()
        if self._column and start + length > self._width:
            shown.append("\n")
            start = 0
        else:
            shown.append_text(self._gap)
        shown.append_text(self._word)
        self._column = start + length
        self._gap, self._word = Text(), Text()

    def _behind_gap(self) -> int:
        column = self._column
        for character in self._gap.plain:
            column += _TAB - column % _TAB if character == "\t" else 1
        return column
