"""Text as it is made, the tokens that the draft had proposed in another colour than the target's own."""

from rich.text import Text

from pard2.engine.statistics import Step
from pard2.hf import Tokenizer
from pard2.reading import printable

DRAFTED = "green"


class ColouredText:
    """Turns the steps of one completion into text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._shown = ""

    def add(self, step: Step) -> Text:
        """What this step adds to the text; a character that it leaves unfinished comes with the next."""
        text = Text()
        for index, token in enumerate(step.token_ids):
            self._token_ids.append(token)
            # Decoded from the start each time: a character may spread over several tokens.
            whole = str(self._tokenizer.decode(self._token_ids, skip_special_tokens=True))
            if not whole.endswith("\ufffd"):
                text.append(printable(whole[len(self._shown) :], keep="\n\t"), style=DRAFTED if index < step.accepted else "")
                self._shown = whole
        return text
