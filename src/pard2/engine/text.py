"""Text out of token ids as they come: one completion's detokeniser and finder of stop strings.

It knows a tokenizer, but neither models nor end-of-answer tokens nor how a cycle came by its tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pard2.hf import Tokenizer

_REPLACEMENT = "\ufffd"  # what decoders put in place of bytes that are no UTF-8, or not yet
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a byte-fallback token

# An unfinished character has at most three bytes, and a token at least one.
_CONTEXT = 3
_LONGEST_WINDOW = 16  # tokens; dropping old ones costs another decode, so it is not done for every push


@dataclass(frozen=True)
class TextDelta:
    """What a push brought.

    text: may be shown at once, and will not change.
    kept: None, or, where a stop string is complete and the text therefore ends, how many of the tokens just
        pushed belong to the completion: those up to the one that completed the stop string.
    """

    text: str
    kept: int | None = None


@dataclass(frozen=True)
class _Window:
    """The last tokens of a completion, as many as the text to come can depend on.

    tokens: leaving out those without text.
    stable: how many come before the byte-fallback tokens at the end, if any.
    settled: how many characters of the decoded window are known for good, and so have been handed on.
    """

    tokens: tuple[int, ...] = ()
    stable: int = 0
    settled: int = 0


class TextStream:
    """Shows a completion's text piece by piece and ends it right before the first stop string.

    The pieces of `push` and `finish` add up to `tokenizer.decode` of all kept tokens, without clean-up of
    blanks (which would eat those that the model wrote: `ls .`), cut before the stop string. Of several stop
    strings the one completed by the earliest token counts, and of those the one that starts first. A U+FFFD
    at the end of a text, which may yet become a character, is no match until something follows it.

    stop: not empty strings.
    keep_stop: end the text right behind the stop string instead.
    unstoppable: so many tokens from the first on have text that is no part of a stop string.
    skip_special_tokens: leave special tokens, such as end-of-answer ones, out of the text.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), keep_stop: bool = False, unstoppable: int = 0, skip_special_tokens: bool = True
    ) -> None:
        self.stop = stop
        self._keep_stop = keep_stop
        self._unstoppable = unstoppable
        self._tokenizer = tokenizer
        self._skipped = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if skip_special_tokens and token.special)
        self._window = _Window()
        self._held = ""  # settled, but may be the beginning of a stop string
        self._shown: list[str] = []
        self._ended = False

    @property
    def text(self) -> str:
        """Everything shown so far; after the end, the whole text."""
        return "".join(self._shown)

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """Take the tokens of one cycle. Raises `ValueError` after the text has ended."""
        if self._ended:
            raise ValueError("the text has ended")
        free = min(self._unstoppable, len(token_ids)) if self.stop else 0
        if not free:
            return self._push(token_ids)
        self._unstoppable -= free
        self._window, shown = self._advance(self._window, token_ids[:free])
        self._shown.append(shown)
        delta = self._push(token_ids[free:])
        return TextDelta(shown + delta.text, None if delta.kept is None else free + delta.kept)

    def _push(self, token_ids: Sequence[int]) -> TextDelta:
        """`push` of tokens that may hold a stop string."""
        # Without byte tokens text only grows, so a stop string that a block's first tokens complete
        # is still there at its end.
        if not self.stop or not any(self._is_byte(token) for token in token_ids):
            window, settled = self._advance(self._window, token_ids)
            if self._text_end(self._held + settled) is None:
                self._window = window
                return TextDelta(self._show_safe(settled))
        shown = ""
        for count, token in enumerate(token_ids, 1):
            self._window, settled = self._advance(self._window, [token])
            # A byte run's text is not settled, but a stop string in it ends the answer: in such a
            # vocabulary "\n" is a byte.
            text = self._held + settled + self._unsettled().rstrip(_REPLACEMENT)
            end = self._text_end(text)
            if end is not None:
                self._end(text[:end])
                return TextDelta(shown + text[:end], count)
            shown += self._show_safe(settled)
        return TextDelta(shown)

    def finish(self) -> str:
        """End the text where no stop string did, and return what was held back; empty if
        the text has ended before."""
        if self._ended:
            return ""
        rest = self._held + self._decode(self._window.tokens)[self._window.settled :]
        self._end(rest)
        return rest

    def _advance(self, window: _Window, token_ids: Sequence[int]) -> tuple[_Window, str]:
        """The window moved over more tokens, and the text that this settles.

        Text is the difference between decoding a window with and without its newest tokens. A token
        cannot be decoded alone: it may hold part of a character, and decoders in the manner of
        SentencePiece drop the blank before the first token. The window bounds the cost: the whole
        completion would be decoded anew for every push.

        Two ends of a text are not settled. A U+FFFD may be a character's first bytes; only the last
        one, as an invalid byte before it stays invalid. And in a run of byte-fallback tokens one
        invalid byte turns all of them, complete characters included, into U+FFFD, so a run is settled
        by the token behind it alone.
        """
        tokens, stable = list(window.tokens), window.stable
        for token in token_ids:
            if self._has_text(token):
                tokens.append(token)
                if not self._is_byte(token):
                    stable = len(tokens)
        if stable == window.stable:
            return _Window(tuple(tokens), stable, window.settled), ""
        text = self._decode(tokens[:stable])
        unfinished = text.endswith(_REPLACEMENT)
        settled = len(text) - unfinished
        new = text[window.settled : settled]
        if stable > _LONGEST_WINDOW:
            tokens = tokens[stable - _CONTEXT :]
            stable = _CONTEXT
            settled = len(self._decode(tokens[:stable])) - unfinished
        return _Window(tuple(tokens), stable, settled), new

    def _unsettled(self) -> str:
        """What the byte tokens at the window's end say for now, after a U+FFFD that
        was not settled before them."""
        window = self._window
        return self._decode(window.tokens)[window.settled :] if window.stable < len(window.tokens) else ""

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))

    def _has_text(self, token: int) -> bool:
        """False for what decoding passes over: special tokens, and ids that only pad the model's vocabulary.

        Left in the window they would be a context that shows no blank behind it, and, with
        end-of-answer tokens ignored, fill it.
        """
        return token not in self._skipped and self._tokenizer.convert_ids_to_tokens(token) is not None

    def _is_byte(self, token: int) -> bool:
        name = self._tokenizer.convert_ids_to_tokens(token)
        return name is not None and _BYTE.fullmatch(name) is not None

    def _text_end(self, text: str) -> int | None:
        """Where the text ends by the stop string that starts first, if there is one."""
        found = min(((start, len(stop)) for stop in self.stop if (start := text.find(stop)) >= 0), default=None)
        return None if found is None else found[0] + (found[1] if self._keep_stop else 0)

    def _show_safe(self, settled: str) -> str:
        """Show what can no longer be part of a stop string, and hold back the rest."""
        text = self._held + settled
        safe = len(text)
        for stop in self.stop:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while start >= 0 and not stop.startswith(text[start:]):
                start = text.find(stop[0], start + 1)
            if start >= 0:
                safe = min(safe, start)
        self._held = text[safe:]
        self._shown.append(text[:safe])
        return text[:safe]

    def _end(self, last: str) -> None:
        self._shown.append(last)
        self._ended = True
