"""What the caller asks of a completion: how to choose tokens and when to end. It knows no model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pard2.errors import Pard2Error

MOST_STOPS = 16
LONGEST_STOP = 256  # characters
MOST_COMPLETIONS = 128
MOST_LOGPROBS = 20  # the OpenAI API's limit
# Outside of these a divided logit leaves float32's range, and the distribution turns to NaN.
_SMALLEST, _LARGEST = 1e-5, 1e5


class Biases(dict[int, float]):
    """A dictionary that stays as it was checked."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("settings cannot be changed; make new SamplingParams")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:  # else a copy would be filled by __setitem__
        return Biases, (dict(self),)


@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded; the defaults are greedy decoding to the first end-of-answer token.

    max_tokens: new tokens at most. temperature: 0 is greedy. top_k: 0 is off. top_p, min_p: nucleus and minimum
    probability relative to the largest. repetition_penalty: divides the positive logits of tokens in the prompt or the
    answer and multiplies the negative ones; presence_penalty and frequency_penalty: subtracted from the
    logits of tokens in the answer, once and per occurrence. logit_bias: added to the logits of these token ids.
    seed: same seed, same text; None draws a new one. n: completions of the prompt. stop: texts that end the answer, a tuple
    after construction. logprobs: None for none, 0 for the emitted tokens' alone, m for those and the m largest.

    Ranges are the OpenAI API's and vLLM's. Raises `Pard2Error` for a value outside, naming its flag.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)  # a dictionary has no hash
    seed: int | None = None
    n: int = 1
    stop: Sequence[str] | str = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check("--stop", repr(self.stop), isinstance(self.stop, Iterable), "give a text or a list of texts")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        _check("--logit-bias", repr(self.logit_bias), isinstance(self.logit_bias, Mapping | None), "give a dictionary of biases by token id")
        object.__setattr__(self, "logit_bias", Biases(self.logit_bias) if self.logit_bias else None)

        _check("--max-new-tokens", self.max_tokens, is_whole(self.max_tokens, 1), "at least 1 is needed")
        in_range = _real(self.temperature, 0, _LARGEST) and (self.temperature == 0 or self.temperature >= _SMALLEST)
        _check("--temperature", self.temperature, in_range, "give 0 (greedy) or a number from 0.00001 to 100000")
        _check("--top-k", self.top_k, is_whole(self.top_k, 0), "give 0 (off) or the number of tokens to keep")
        _check("--top-p", self.top_p, _real(self.top_p, 0, 1) and self.top_p > 0, "give a number above 0 and at most 1 (off)")
        _check("--min-p", self.min_p, _real(self.min_p, 0, 1), "give a number from 0 (off) to 1")
        in_range = _real(self.repetition_penalty, _SMALLEST, _LARGEST)
        _check("--repetition-penalty", self.repetition_penalty, in_range, "give a number from 0.00001 to 100000; 1 is off")
        _check("--presence-penalty", self.presence_penalty, _real(self.presence_penalty, -2, 2), "give a number from -2 to 2; 0 is off")
        _check("--frequency-penalty", self.frequency_penalty, _real(self.frequency_penalty, -2, 2), "give a number from -2 to 2; 0 is off")
        for token, bias in (self.logit_bias or {}).items():
            _check("--logit-bias", f"{token}={bias}", is_whole(token, 0), "the token id must be a whole number, 0 or more")
            _check("--logit-bias", f"{token}={bias}", _real(bias, -100, 100), "give a bias from -100 to 100")
        _check("--seed", self.seed, self.seed is None or is_whole(self.seed, 0, 2**63 - 1), "give a whole number from 0 to 2**63 - 1")
        _check("--n", self.n, is_whole(self.n, 1, MOST_COMPLETIONS), f"give a number of completions from 1 to {MOST_COMPLETIONS}")
        _check("--stop", f"has {len(stop)} texts", len(stop) <= MOST_STOPS, f"give at most {MOST_STOPS}")
        for text in stop:
            fits = isinstance(text, str) and 1 <= len(text) <= LONGEST_STOP
            _check("--stop", repr(text)[:40], fits, f"give texts of 1 to {LONGEST_STOP} characters")
        _check("--ignore-eos", self.ignore_eos, isinstance(self.ignore_eos, bool), "give True or False")
        in_range = self.logprobs is None or is_whole(self.logprobs, 0, MOST_LOGPROBS)
        _check("--logprobs", self.logprobs, in_range, f"give a number of alternatives from 0 to {MOST_LOGPROBS}")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `Pard2Error` for what a vocabulary of this size lacks: a biased token id, or as many alternatives."""
        _check("--logprobs", self.logprobs, (self.logprobs or 0) <= vocab_size, f"the vocabulary has {vocab_size} tokens")
        for token in self.logit_bias or {}:
            _check("--logit-bias", f"names token {token}", token < vocab_size, f"the vocabulary ends at {vocab_size - 1}")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, so that nothing is drawn."""
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        """Whether a token's logit depends on how often it has been said."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def truncated(self) -> bool:
        """Whether improbable tokens are cut off; greedy decoding would never choose them anyway."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def processed(self) -> bool:
        """Whether logits need any processing before a token is chosen by them."""
        return self.logit_bias is not None or self.penalised or self.truncated or self.temperature not in (0, 1)


def _check(flag: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise Pard2Error(f"{flag} {' '.join(str(value).split())[:60]}: {wanted}")  # of a wrong type, it may be long


# What comes from JSON may be of any type; and NaN, which no comparison holds for, is in no range.
def is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    """Whether it is an `int` from low to high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
