"""What the caller asks of a completion."""

from dataclasses import dataclass

from pard2.errors import Pard2Error


@dataclass(frozen=True)
class SamplingParams:
    """Greedy decoding of at most `max_tokens` tokens, to the first end-of-answer token unless `ignore_eos`.

    Raises `Pard2Error` for a `max_tokens` below 1.
    """

    max_tokens: int = 128
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise Pard2Error(f"--max-new-tokens {self.max_tokens}: at least 1 is needed")
