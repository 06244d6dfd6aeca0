"""A conversation's tokens as a person can read them, those that the draft learns to predict set apart."""

from itertools import groupby, islice

from rich.text import Text

from pard2.data.corpus import Example
from pard2.hf import Tokenizer
from pard2.reading import printable


def render(tokenizer: Tokenizer, example: Example, most: int, marked: bool) -> Text:
    """The text of the example's first `most` tokens.

    marked: put ⟦ ⟧ around what is predicted, for output without colours.
    """
    text = Text()
    pairs = islice(zip(example.token_ids.tolist(), example.predicted.tolist(), strict=True), most)
    for predicted, stretch in groupby(pairs, key=lambda pair: pair[1]):
        # Decoded together: a character may be spread over several tokens.
        part = tokenizer.decode([token for token, _ in stretch], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        part = printable(part, keep="\n\t")
        text.append(f"⟦{part}⟧" if predicted and marked else part, style="green" if predicted else "dim")
    return text
