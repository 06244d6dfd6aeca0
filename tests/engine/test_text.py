"""Streamed text against decoding everything anew after every token, and the ways
in which streams go wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from chat_tokenizer import END_ID, byte_tokenizer
from pard2.engine.text import TextDelta, TextStream

EOS = "<eos>"
LOST = "\ufffd"


def wrap(backend: Tokenizer, **options) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(EOS, special=True), AddedToken("<reserved>", special=True)])  # the second has no role
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, **options)


def byte_level(pieces: list[bytes]) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2, Qwen, Llama-3, SmolLM2): any bytes may be a token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - set(printable)))}
    backend = Tokenizer(models.BPE({"".join(letters[byte] for byte in piece): i for i, piece in enumerate(pieces)}, []))
    backend.decoder = decoders.ByteLevel()
    return wrap(backend)


def metaspace(pieces: list[str]) -> PreTrainedTokenizerFast:
    """SentencePiece-like: a blank belongs to the token behind it, and is dropped at the start."""
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0))
    backend.decoder = decoders.Metaspace()
    return wrap(backend)


def byte_fallback(pieces: list[str]) -> PreTrainedTokenizerFast:
    """As in Llama-2, Mistral and Gemma: pieces, and a token for each byte that they cannot say.

    Ids 0 to 255 are the bytes.
    """
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate([f"<0x{byte:02X}>" for byte in range(256)] + pieces)}, []))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return wrap(backend)


EMOJI = "😀".encode()  # four bytes
BYTE_PIECES = [b"a", b"b", b"ab", b" a", b" ", b".", b"\n", EMOJI, EMOJI[:2], EMOJI[2:]]
BYTE_PIECES += [b"\xff", b"\xc3", b"\xa9b", b"\xef\xbf", b"\xbd", b"\xef\xbf\xbd"]  # the last is U+FFFD itself
BYTE_PIECES += [bytes([byte]) for byte in EMOJI]
TEXT_PIECES = ["a", "b", "ab", "▁a", "▁", "▁▁", "▁.", "\n", "😀", "é", LOST]
BYTES = [*EMOJI, *"é".encode(), *b"a \n\xff\xef\xbf\xbd"]

LEVEL, META, FALLBACK = byte_level(BYTE_PIECES), metaspace(TEXT_PIECES), byte_fallback(TEXT_PIECES)
TOKENIZERS = {"byte-level": LEVEL, "metaspace": META, "byte-fallback": FALLBACK}
# All of them, the special ones, and one that only pads the model's vocabulary.
TOKENS = {
    "byte-level": list(range(len(LEVEL) + 1)),
    "metaspace": list(range(len(META) + 1)),
    "byte-fallback": BYTES + list(range(256, len(FALLBACK) + 1)),
}


def level(*pieces: str | bytes) -> list[int]:
    return [BYTE_PIECES.index(piece.encode() if isinstance(piece, str) else piece) for piece in pieces]


def fallback(*pieces: str | int) -> list[int]:
    return [piece if isinstance(piece, int) else 256 + TEXT_PIECES.index(piece) for piece in pieces]


def decode(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def run(stream: TextStream, *pushes: list[int]) -> list[str]:
    """What each push shows, then what the end does."""
    return [stream.push(tokens).text for tokens in pushes] + [stream.finish()]


# The naive reference: it decodes the whole after every token.


def with_text(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> list[int]:
    return [token for token in tokens if decode(tokenizer, [token, token])]  # twice: a blank at a text's start shows nothing either


def without_open_bytes(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> list[int]:
    """Tokens with text, less the run of byte-fallback tokens at their end."""
    visible = with_text(tokenizer, tokens)
    while visible and str(tokenizer.convert_ids_to_tokens(visible[-1])).startswith("<0x"):
        visible.pop()
    return visible


def first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    return min((text.find(s) for s in stop if s in text), default=None)


def naive(tokenizer: PreTrainedTokenizerFast, tokens: list[int], stop: tuple[str, ...]) -> tuple[str, int | None]:
    """The cut text, and how many tokens are kept where a stop string cuts it."""
    for count in range(1, len(tokens) + 1):
        text = decode(tokenizer, tokens[:count])
        open_bytes = without_open_bytes(tokenizer, tokens[:count]) != with_text(tokenizer, tokens[:count])
        start = first_stop(text.rstrip(LOST) if open_bytes else text.removesuffix(LOST), stop)
        if start is not None:
            return text[:start], count
    return decode(tokenizer, tokens), None


def naive_shown(tokenizer: PreTrainedTokenizerFast, tokens: list[int], stop: tuple[str, ...]) -> str:
    """All that may be shown after these tokens, none of which completed a stop string."""
    text = decode(tokenizer, without_open_bytes(tokenizer, tokens)).removesuffix(LOST)
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tokens_in_any_pushes_with_any_stop_strings_give_the_text_of_the_whole(kind, data):
    tokenizer = TOKENIZERS[kind]
    pushes = data.draw(st.lists(st.lists(st.sampled_from(TOKENS[kind]), max_size=5), max_size=12))
    letters = data.draw(st.sampled_from(["ab", "ab .\n😀é" + LOST]))
    stop = tuple(data.draw(st.lists(st.text(letters, min_size=1, max_size=4), max_size=3)))
    tokens = [token for push in pushes for token in push]
    text, kept = naive(tokenizer, tokens, stop)

    stream = TextStream(tokenizer, stop)
    shown, count = "", 0
    for push in pushes:
        delta = stream.push(push)
        shown += delta.text
        assert stream.text == shown
        if delta.kept is not None:
            count += delta.kept
            break
        count += len(push)
        assert shown == naive_shown(tokenizer, tokens[:count], stop)  # neither too early nor held back for nothing
    else:
        assert kept is None
    assert kept in (None, count)
    assert shown + stream.finish() == stream.text == text


def test_a_character_split_over_four_tokens_is_shown_when_whole():
    parts = level(*(bytes([byte]) for byte in EMOJI))
    assert run(TextStream(LEVEL), *([part] for part in parts)) == ["", "", "", "😀", ""]
    assert run(TextStream(LEVEL), level("a") + parts[:3], parts[3:] + parts[:2], parts[2:]) == ["a", "😀", "😀", ""]


@pytest.mark.parametrize("before", range(36))
def test_a_character_is_whole_wherever_the_window_drops_its_old_tokens(before):
    tokens = level(*["b"] * before, *(bytes([byte]) for byte in EMOJI * 2), "a")
    assert "".join(run(TextStream(LEVEL), *([token] for token in tokens))) == "b" * before + "😀😀a"


def test_a_replacement_character_of_the_text_itself_is_not_waited_for_forever():
    genuine = level(LOST)
    assert run(TextStream(LEVEL), genuine, level("a")) == ["", LOST + "a", ""]
    assert run(TextStream(LEVEL), genuine) == ["", LOST]
    assert run(TextStream(FALLBACK), fallback(LOST), fallback("a")) == ["", LOST + "a", ""]
    assert run(TextStream(LEVEL), level(b"\xff"), level(b"\xff"), level(b"\xff")) == ["", LOST, LOST, LOST]


def test_half_a_character_at_the_end_comes_out_at_the_length_limit():
    assert run(TextStream(LEVEL), level("a", EMOJI[:2])) == ["a", LOST]
    assert run(TextStream(FALLBACK), fallback("a", *EMOJI[:2])) == ["a", LOST * 2]


def test_an_invalid_byte_changes_no_character_that_was_shown():
    """Byte fallback turns a whole run of bytes, the emoji too, into U+FFFD."""
    run_of_bytes = fallback(*EMOJI, 0xFF)
    assert decode(FALLBACK, run_of_bytes) == LOST * 5
    assert run(TextStream(FALLBACK), *([token] for token in fallback(*EMOJI, 0xFF, "a"))) == ["", "", "", "", "", LOST * 5 + "a", ""]
    assert run(TextStream(FALLBACK), *([token] for token in fallback(*EMOJI, "a"))) == ["", "", "", "", "😀a", ""]


def test_a_stop_string_of_a_byte_token_ends_the_text_at_once():
    """Where the vocabulary says a newline as a byte, waiting for the next token would keep one too many."""
    stream = TextStream(FALLBACK, ("\n",))
    assert stream.push(fallback("a", 0x0A, "b")) == TextDelta("a", kept=2)
    assert stream.text == "a"


@pytest.mark.parametrize("kind", ["metaspace", "byte-fallback"])
@pytest.mark.parametrize("between", [[], [EOS], [EOS] * 40])
def test_no_blank_is_lost_where_the_window_starts_or_a_special_token_stood(kind, between):
    tokenizer = TOKENIZERS[kind]
    word, blank, special = (tokenizer.convert_tokens_to_ids(token) for token in ("▁a", "▁", EOS))
    tokens = [word] + ([special] * len(between) + [word, blank]) * 30
    shown = run(TextStream(tokenizer), *([token] for token in tokens))
    assert "".join(shown) == "a" + " a " * 30


def test_a_special_token_without_a_role_is_left_out_as_in_decode():
    reserved = LEVEL.convert_tokens_to_ids("<reserved>")
    assert reserved not in LEVEL.all_special_ids
    assert run(TextStream(LEVEL), [reserved, *level("a"), reserved]) == ["a", ""]


def test_end_of_answer_token_shows_nothing_unless_special_tokens_are_asked_for():
    end = [LEVEL.eos_token_id]
    assert run(TextStream(LEVEL), level("a") + end) == ["a", ""]
    assert run(TextStream(LEVEL, skip_special_tokens=False), level("a") + end) == ["a" + EOS, ""]
    assert TextStream(LEVEL, ("a" + EOS,), skip_special_tokens=False).push(level("b", "a") + end + level("b")) == TextDelta("b", kept=3)


def test_a_padding_row_of_the_vocabulary_says_nothing():
    assert run(TextStream(META), [META.convert_tokens_to_ids("▁a"), len(META) + 7, META.convert_tokens_to_ids("▁a")]) == ["a a", ""]


def test_blanks_before_punctuation_are_the_models_own():
    """Clean-up would turn a blank that was shown into none."""
    words = Tokenizer(models.WordLevel({"ls": 0, ".": 1, "'s": 2}, unk_token="ls"))
    tokenizer = wrap(words, clean_up_tokenization_spaces=True)
    assert tokenizer.decode([0, 1, 2]) == "ls.'s"
    assert run(TextStream(tokenizer), [0], [1], [2]) == ["ls", " .", " 's", ""]


def test_a_stop_string_across_three_tokens_in_three_pushes():
    stream = TextStream(LEVEL, ("b.\n",))
    assert [stream.push(level(piece)) for piece in ("a", "ab", ".", "\n")] == [TextDelta("a"), TextDelta("a"), TextDelta(""), TextDelta("", kept=1)]
    assert (stream.text, stream.finish()) == ("aa", "")


def test_a_stop_string_inside_an_accepted_block_drops_the_tokens_behind_it():
    stream = TextStream(LEVEL, (".",))
    assert stream.push(level("a", "b", ".", "a", ".", "b")) == TextDelta("ab", kept=3)
    assert (stream.text, stream.finish()) == ("ab", "")


def test_a_stop_string_inside_a_token_keeps_the_token_and_cuts_the_text():
    assert TextStream(META, ("b",)).push([META.convert_tokens_to_ids("ab"), 0]) == TextDelta("a", kept=1)


def test_a_failed_beginning_of_a_stop_string_is_shown():
    assert run(TextStream(LEVEL, ("b.\n",)), level("b"), level("."), level("a", "b"), level(".")) == ["", "", "b.a", "", "b."]
    assert run(TextStream(LEVEL, ("aab",)), level("a"), level("a"), level("a"), level("a"), level("b")) == ["", "", "a", "a", "", ""]


@pytest.mark.parametrize("stop", [("ab.", "b\n"), ("b\n", "ab.")])
def test_text_is_held_back_for_the_stop_string_that_may_have_begun_first(stop):
    stream = TextStream(LEVEL, stop)
    assert stream.push(level("b", "ab")) == TextDelta("b")
    assert stream.push(level(".")) == TextDelta("", kept=1)
    assert stream.text == "b"


def test_of_overlapping_stop_strings_the_first_completed_wins_and_on_a_tie_the_first_started():
    assert TextStream(LEVEL, ("b.\n", ".")).push(level("a", "b", ".", "\n")) == TextDelta("ab", kept=3)
    assert TextStream(LEVEL, (".", "b.")).push(level("a", "b", ".", "\n")) == TextDelta("a", kept=3)
    stream = TextStream(LEVEL, ("b", "ab"))
    assert stream.push(level(" a")) == TextDelta(" ")
    assert stream.push(level("b", "a")) == TextDelta("", kept=1)
    assert stream.text == " "


def test_pushing_after_the_end_is_an_error_of_the_caller():
    stopped, finished = TextStream(LEVEL, ("a",)), TextStream(LEVEL)
    stopped.push(level("a"))
    finished.finish()
    for stream in (stopped, finished):
        with pytest.raises(ValueError, match="ended"):
            stream.push(level("b"))
        assert stream.finish() == ""


@pytest.mark.parametrize("kind", ["text", "ignored ends", "invalid bytes", "a run of bytes"])
def test_cost_of_a_push_does_not_grow_with_the_text(kind, monkeypatch):
    tokenizer, token = {
        "text": (byte_tokenizer(), 70),
        "ignored ends": (byte_tokenizer(), END_ID),
        "invalid bytes": (LEVEL, level(b"\xff")[0]),
        "a run of bytes": (FALLBACK, 0xFF),
    }[kind]
    decoded: list[int] = []
    original = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda tokens, **options: decoded.append(len(tokens)) or original(tokens, **options))
    stream = TextStream(tokenizer)
    for _ in range(200):
        before = len(decoded)
        stream.push([token] * 3)
        assert sum(decoded[before:]) < 30
