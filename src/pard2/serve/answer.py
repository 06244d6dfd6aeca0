"""An answer in the making, whole or as a stream of events; what both APIs have in common."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pard2.engine.statistics import Step
from pard2.engine.text import TextStream
from pard2.hf import Tokenizer
from pard2.serve.prepare import Prepared
from pard2.serve.ticket import Made
from pard2.serve.told import Told, usage

Aside = Callable[..., Awaitable[Any]]  # calls a function in the thread for tokenising
DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Answer:
    """aside: for what decodes tokens, which the event loop must not wait for."""

    prefix = whole_object = chunk_object = ""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer, model: str, aside: Aside) -> None:
        self.prepared, self.ticket, self.asked = prepared, prepared.ticket, prepared.asked
        self._aside = aside
        trace, sequences = self.asked.trace, self.ticket.sequences
        self.told = [Told(tokenizer, TextStream(tokenizer) if trace else None) for _ in sequences]
        self.prompt_tokens = sum(len(request.sequences[0].prompt) for request in self.ticket.requests)
        self.first_token_seconds: float | None = None
        self._logprobs = bool(sequences) and sequences[0].params.logprobs is not None
        self._slow = trace or self._logprobs
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "object": "", "created": int(time.time()), "model": model}

    # --- whole ------------------------------------------------------------------------------------

    async def whole(self) -> dict[str, Any]:
        """All of it, once it is there. Raises `ApiError` where one of its completions fails."""
        async for made in self.ticket.steps():
            self._add(made)
        choices = await self._aside(self._choices) if self._slow else self._choices()
        body = {**self._head, "object": self.whole_object, "choices": choices, "usage": self.usage()}
        return body if self.asked.pard2 is None else body | {"pard2": {"method": self.ticket.way.method}}

    def _choices(self) -> list[dict[str, Any]]:
        return [self._choice(number, told) for number, told in enumerate(self.told)]

    def _choice(self, number: int, told: Told) -> dict[str, Any]:
        choice = {"index": number, **self.whole_part(number, told), "finish_reason": told.finish_reason}
        if self.asked.trace:
            choice["pard2"] = {"trace": [told.traced(step) for step in told.steps if step.token_ids], "stats": told.stats.as_dict()}
        return choice

    def whole_part(self, number: int, told: Told) -> dict[str, Any]:
        """What a choice holds beside its number, reason and trace."""
        raise NotImplementedError

    # --- piece by piece ---------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[bytes]:
        """Raises `ApiError` as `whole` does, also after the first events."""
        async for made in self.ticket.steps():
            first, shown = not self.told[made.number].steps, self._add(made)
            part = await self._aside(self._part, made, shown, first) if self._slow else self._part(made, shown, first)
            if part is not None:
                yield event(self._chunk([part]))
        if self.asked.include_usage:
            yield event(self._chunk([]) | {"usage": self.usage()})
        yield DONE

    def _part(self, made: Made, shown: str, first: bool) -> dict[str, Any] | None:
        """A choice of a chunk; None where there is nothing to say yet."""
        step, told = made.step, self.told[made.number]
        if not (shown or first or self._slow or step.finish_reason):
            return None
        part = {"index": made.number, **self.chunk_part(made.number, told, step, shown, first), "finish_reason": step.finish_reason}
        if self.asked.trace:
            part["pard2"] = told.traced(step) | ({"stats": told.stats.as_dict()} if step.finish_reason else {})
        return part

    def chunk_part(self, number: int, told: Told, step: Step, shown: str, first: bool) -> dict[str, Any]:
        """What a choice of a chunk holds beside its number, reason and trace."""
        raise NotImplementedError

    def _chunk(self, choices: list[Any]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        if self.asked.include_usage:
            chunk["usage"] = None
        return chunk if self.asked.pard2 is None else chunk | {"pard2": {"method": self.ticket.way.method}}

    # --- both -------------------------------------------------------------------------------------

    def _add(self, made: Made) -> str:
        if self.first_token_seconds is None and made.step.token_ids:
            self.first_token_seconds = time.perf_counter() - self.ticket.arrived
        return self.told[made.number].add(made.step)

    def usage(self) -> dict[str, Any]:
        return usage(self.prompt_tokens, self.told)

    def facts(self) -> dict[str, Any]:
        """For the log: how it went so far, without a word of it."""
        counts = self.usage()
        return {
            "prompt_tokens": counts["prompt_tokens"],
            "completion_tokens": counts["completion_tokens"],
            "accepted": counts["completion_tokens_details"]["accepted_prediction_tokens"],
            "rejected": counts["completion_tokens_details"]["rejected_prediction_tokens"],
            "method": self.ticket.way.method,
            "finish_reason": ",".join(str(told.finish_reason) for told in self.told),
            "first_token_seconds": None if self.first_token_seconds is None else round(self.first_token_seconds, 6),
            "stream": self.asked.stream,
        }


class ChatAnswer(Answer):
    """Of /v1/chat/completions."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def whole_part(self, number: int, told: Told) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            logprobs = {"content": [one for step in told.steps for one in told.chat_logprobs(step)["content"]]}
        return {"message": {"role": "assistant", "content": told.text}, "logprobs": logprobs}

    def chunk_part(self, number: int, told: Told, step: Step, shown: str, first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": shown} if first else {"content": shown} if shown else {}
        return {"delta": delta, "logprobs": told.chat_logprobs(step) if self._logprobs else None}


class TextAnswer(Answer):
    """Of /v1/completions."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def _echo(self, number: int) -> str:
        """The prompt of a completion, where it is to be told again."""
        return self.prepared.prompts[number // self.asked.n] if self.prepared.prompts else ""

    def whole_part(self, number: int, told: Told) -> dict[str, Any]:
        logprobs: dict[str, list[Any]] | None = None
        for step in told.steps if self._logprobs else ():
            found = told.completion_logprobs(step)
            logprobs = found if logprobs is None else {name: held + found[name] for name, held in logprobs.items()}
        return {"text": self._echo(number) + told.text, "logprobs": logprobs}

    def chunk_part(self, number: int, told: Told, step: Step, shown: str, first: bool) -> dict[str, Any]:
        text = (self._echo(number) if first else "") + shown
        return {"text": text, "logprobs": told.completion_logprobs(step) if self._logprobs else None}
