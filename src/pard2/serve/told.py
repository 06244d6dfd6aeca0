"""What one completion has said so far, as the server tells it: text, log-probabilities, counts, a trace."""

from dataclasses import dataclass, field
from typing import Any

from pard2.engine.statistics import Stats, Step, TokenLogprob
from pard2.engine.text import TextStream
from pard2.hf import Tokenizer

_LOWEST = -9999.0


@dataclass
class Told:
    """One completion. tracer: pieces the text of single tokens together; None without a trace."""

    tokenizer: Tokenizer
    tracer: TextStream | None = None
    steps: list[Step] = field(default_factory=list)
    finish_reason: str | None = None
    offset: int = 0  # characters before the tokens to come, for log-probabilities

    def add(self, step: Step) -> str:
        """What this step adds to the text."""
        self.steps.append(step)
        self.finish_reason = step.finish_reason
        return step.text or ""

    @property
    def text(self) -> str:
        return "".join(step.text or "" for step in self.steps)

    @property
    def stats(self) -> Stats:
        return Stats.of(self.steps)

    @property
    def tokens(self) -> int:
        return sum(len(step.token_ids) for step in self.steps)

    def traced(self, step: Step) -> dict[str, Any]:
        """How a step came about. Its pieces add up to the text, but where a stop text cut that."""
        assert self.tracer is not None
        pieces = [self.tracer.push([token]).text for token in step.token_ids]
        if step.finish_reason is not None:
            pieces.append(self.tracer.finish())
        return {"tokens": pieces, "token_ids": list(step.token_ids), "accepted": step.accepted, "proposed": step.proposed}

    # --- log-probabilities ------------------------------------------------------------------------

    def chat_logprobs(self, step: Step) -> dict[str, Any]:
        return {"content": [self._chat_logprob(one) for one in step.logprobs or ()]}

    def _chat_logprob(self, one: TokenLogprob) -> dict[str, Any]:
        return self._named(one.token_id, one.logprob) | {"top_logprobs": [self._named(token, logprob) for token, logprob in one.top]}

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._token(token_id)
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}

    def completion_logprobs(self, step: Step) -> dict[str, Any]:
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for one in step.logprobs or ():
            text = self._token(one.token_id)
            found["tokens"].append(text)
            found["token_logprobs"].append(_finite(one.logprob))
            # The token itself is always among them, as in OpenAI's API.
            top = {self._token(token): _finite(logprob) for token, logprob in one.top}
            found["top_logprobs"].append({**top, text: _finite(one.logprob)} if one.top else None)
            found["text_offset"].append(self.offset)
            self.offset += len(text)
        return found

    def _token(self, token_id: int) -> str:
        return str(self.tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _finite(logprob: float) -> float:
    """JSON has no infinity; vLLM sends this number, too."""
    return max(logprob, _LOWEST)


def usage(prompt_tokens: int, told: list[Told]) -> dict[str, Any]:
    """Tokens of a request. Rejected is what was proposed and not said."""
    completion_tokens = sum(one.tokens for one in told)
    stats = sum((one.stats for one in told), Stats())
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens_details": {
            "accepted_prediction_tokens": stats.accepted,
            "rejected_prediction_tokens": stats.proposed - stats.accepted,
        },
    }
