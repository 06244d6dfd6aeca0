"""Where the last tokens of a text stood before, and what followed them: an index that grows with the text."""

from collections.abc import Sequence


class NgramIndex:
    """One text, and for each of its n-grams the place after its latest occurrence.

    A new token costs an entry for each length of n-gram, however long the text is.

    shortest, longest: tokens of the n-grams.
    match: how many of the text's last tokens stood together before: the longest n-gram; 0 for none.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self._sizes = range(shortest, longest + 1)
        self._text: list[int] = []
        self._followers: dict[tuple[int, ...], int] = {}
        self.match = 0

    def read(self, token_ids: Sequence[int]) -> None:
        """The text goes on with these tokens."""
        for token in token_ids:
            # An n-gram enters with the token that follows it, so the text's end is no match of itself.
            for size in self._sizes:
                if size <= len(self._text):
                    self._followers[tuple(self._text[-size:])] = len(self._text)
            self._text.append(token)
        known = (size for size in reversed(self._sizes) if size <= len(self._text) and tuple(self._text[-size:]) in self._followers)
        self.match = next(known, 0)

    def continuation(self, count: int) -> list[int]:
        """The `count` tokens that followed the last `match` tokens at their latest earlier occurrence.

        Where the text ends too early, what is proposed counts as its end: a text that repeats itself does
        so again. None without a match.
        """
        if self.match == 0:
            return []
        start = self._followers[tuple(self._text[-self.match :])]
        period = len(self._text) - start
        return [self._text[start + place % period] for place in range(count)]
