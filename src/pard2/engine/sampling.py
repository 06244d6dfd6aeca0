"""What the caller asks of a completion: how to choose tokens and when to end. It knows no model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pard2.engine.settings import check, check_number, flag, is_real, is_whole

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


_GROUP = "Sampling"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is decoded; the defaults are greedy decoding to the first end-of-answer token.

    max_tokens: new tokens at most.
    min_tokens: new tokens before the answer may end: what would end it has no probability before, and stop
        texts are looked for behind them.
    temperature: 0 is greedy.
    top_k: sample from so many tokens, the likeliest; 0 or -1 is off.
    top_p: sample from the fewest tokens that hold this probability; 1 is off.
    min_p: leave out tokens below this share of the likeliest one's probability; 0 is off.
    repetition_penalty: divides the positive logits of tokens in the prompt or the answer and multiplies the
        negative ones.
    presence_penalty: subtracted from the logits of tokens in the answer, once.
    frequency_penalty: subtracted from the logits of tokens in the answer, per occurrence.
    logit_bias: added to the logits of these token ids.
    seed: same seed, same text; None draws a new one.
    n: completions of the prompt.
    stop: texts that end the answer; a tuple after construction.
    stop_token_ids: tokens that end the answer, beside those that the model names; a tuple after construction.
    include_stop_str_in_output: keep what ended the answer, a stop text or a token with a text, in its text.
    ignore_eos: go on past the tokens that the model names as the end of an answer.
    logprobs: None for none, 0 for the emitted tokens' alone, m for those and the m largest.

    Names, meanings and ranges are vLLM's. Raises `Pard2Error` for a value outside, by the field's name.
    """

    max_tokens: int = field(default=128, metadata=flag("Longest answer, in tokens.", "--max-new-tokens", metavar="N"))
    min_tokens: int = field(default=0, metadata=flag("Shortest answer, in tokens.", "--min-new-tokens", metavar="N"))
    stop: Sequence[str] | str | None = field(
        default=(), metadata=flag("End the answer before this text; may be given several times.", "--stop", metavar="TEXT")
    )
    stop_token_ids: Sequence[int] | None = field(
        default=(), metadata=flag("End the answer at this token, too; may be given several times.", "--stop-token-id", metavar="ID")
    )
    include_stop_str_in_output: bool = field(
        default=False, metadata=flag("Print the stop text that ended the answer, too.", "--include-stop-str-in-output")
    )
    ignore_eos: bool = field(default=False, metadata=flag("Go on past the end of the answer, for measurements.", "--ignore-eos"))
    temperature: float = field(default=0.0, metadata=flag("0 is greedy; higher is more varied.", "--temperature", group=_GROUP))
    top_k: int = field(default=0, metadata=flag("Sample from so many tokens, the likeliest; 0 or -1 is off.", "--top-k", group=_GROUP))
    top_p: float = field(default=1.0, metadata=flag("Sample from the fewest tokens that hold this probability; 1 is off.", "--top-p", group=_GROUP))
    min_p: float = field(default=0.0, metadata=flag("Leave out tokens below this share of the likeliest one's probability.", "--min-p", group=_GROUP))
    repetition_penalty: float = field(
        default=1.0, metadata=flag("Above 1 against tokens of the prompt and the answer.", "--repetition-penalty", group=_GROUP)
    )
    presence_penalty: float = field(default=0.0, metadata=flag("-2 to 2, against tokens that the answer holds.", "--presence-penalty", group=_GROUP))
    frequency_penalty: float = field(
        default=0.0, metadata=flag("-2 to 2, for each time that the answer holds a token.", "--frequency-penalty", group=_GROUP)
    )
    logit_bias: Mapping[int, float] | None = field(
        default=None,
        hash=False,
        metadata=flag("-100 to 100, for one token; may be given several times.", "--logit-bias", metavar="ID=BIAS", group=_GROUP),
    )  # a dictionary has no hash
    seed: int | None = field(default=None, metadata=flag("The same seed gives the same text.", "--seed", group=_GROUP))
    n: int = field(default=1, metadata=flag("Answers to each prompt.", "--n", group=_GROUP))
    logprobs: int | None = field(
        default=None, metadata=flag("With --json: the tokens' log-probabilities, and the N likeliest.", "--logprobs", metavar="N", group=_GROUP)
    )

    def __post_init__(self) -> None:
        check("stop", repr(self.stop), isinstance(self.stop, Iterable | None), "give a text or a list of texts")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        check("logit_bias", repr(self.logit_bias), isinstance(self.logit_bias, Mapping | None), "give a dictionary of biases by token id")
        object.__setattr__(self, "logit_bias", Biases(self.logit_bias) if self.logit_bias else None)

        check("stop_token_ids", repr(self.stop_token_ids), _lists_tokens(self.stop_token_ids or ()), "give a list of token ids, whole numbers from 0")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))

        check_number("max_tokens", self.max_tokens, is_whole(self.max_tokens, 1), "give a whole number; at least 1 is needed")
        check_number("min_tokens", self.min_tokens, is_whole(self.min_tokens, 0), "give a whole number, 0 (off) or more")
        check("min_tokens", self.min_tokens, self.min_tokens <= self.max_tokens, f"give no more than `max_tokens`, {self.max_tokens}")
        in_range = is_real(self.temperature, 0, _LARGEST) and (self.temperature == 0 or self.temperature >= _SMALLEST)
        check_number("temperature", self.temperature, in_range, "give 0 (greedy) or a number from 0.00001 to 100000")
        check_number("top_k", self.top_k, is_whole(self.top_k, -1), "give the number of tokens to keep; 0 and -1 are off")
        check_number("top_p", self.top_p, is_real(self.top_p, 0, 1) and self.top_p > 0, "give a number above 0 and at most 1 (off)")
        check_number("min_p", self.min_p, is_real(self.min_p, 0, 1), "give a number from 0 (off) to 1")
        in_range = is_real(self.repetition_penalty, _SMALLEST, _LARGEST)
        check_number("repetition_penalty", self.repetition_penalty, in_range, "give a number from 0.00001 to 100000; 1 is off")
        for name in ("presence_penalty", "frequency_penalty"):
            check_number(name, getattr(self, name), is_real(getattr(self, name), -2, 2), "give a number from -2 to 2; 0 is off")
        for token, bias in (self.logit_bias or {}).items():
            check("logit_bias", f"{token}={bias}", is_whole(token, 0), "the token id must be a whole number, 0 or more")
            check("logit_bias", f"{token}={bias}", is_real(bias, -100, 100), "give a bias from -100 to 100")
        check_number("seed", self.seed, self.seed is None or is_whole(self.seed, 0, 2**63 - 1), "give a whole number from 0 to 2**63 - 1")
        check_number("n", self.n, is_whole(self.n, 1, MOST_COMPLETIONS), f"give a number of completions from 1 to {MOST_COMPLETIONS}")
        check("stop", f"has {len(stop)} texts", len(stop) <= MOST_STOPS, f"give at most {MOST_STOPS}")
        for text in stop:
            fits = isinstance(text, str) and 1 <= len(text) <= LONGEST_STOP
            check("stop", repr(text)[:40], fits, f"give texts of 1 to {LONGEST_STOP} characters")
        for name in ("ignore_eos", "include_stop_str_in_output"):
            check(name, repr(getattr(self, name)), isinstance(getattr(self, name), bool), "give True or False")
        in_range = self.logprobs is None or is_whole(self.logprobs, 0, MOST_LOGPROBS)
        check_number("logprobs", self.logprobs, in_range, f"give a number of alternatives from 0 to {MOST_LOGPROBS}")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `Pard2Error` for what such a vocabulary lacks: a token id, or as many alternatives."""
        check("logprobs", self.logprobs, (self.logprobs or 0) <= vocab_size, f"the vocabulary has {vocab_size} tokens")
        for name in ("logit_bias", "stop_token_ids"):
            for token in getattr(self, name) or ():
                check(name, f"names token {token}", token < vocab_size, f"the vocabulary ends at {vocab_size - 1}")

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


def _lists_tokens(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and all(is_whole(token, 0) for token in value)
