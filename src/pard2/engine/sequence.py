"""One completion in the making: what it has said, where its past lies, and when it ends."""

import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pard2.engine.draft_length.acceptance import Acceptance
from pard2.engine.drafters.base import Reading
from pard2.engine.processors import TokenCounts
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import FinishReason, Step, TokenLogprob
from pard2.engine.text import TextStream
from pard2.errors import first_line
from pard2.runtime.kv_cache import CacheRegion


@dataclass(frozen=True)
class Memory:
    """What a sequence owns while it is decoded: its extent of the target's cache, and the draft's reading of it."""

    extent: CacheRegion
    reading: Reading


@dataclass(eq=False)
class Sequence:
    """One thread decodes it while another may end it (a cancelled stream): saying and ending exclude each other.

    prompt: token ids. seed: of its random numbers. index: among the n completions of its request. limit: new tokens at most.

    stops: token ids that end it. text: its detokeniser, None without a tokenizer.
    """

    prompt: list[int]
    params: SamplingParams
    seed: int
    index: int
    limit: int
    stops: frozenset[int]
    text: TextStream | None

    tokens: list[int] = field(default_factory=list)
    steps: deque[Step] = field(default_factory=deque)  # not yet handed to the caller
    finish_reason: FinishReason | None = None
    error: str | None = None

    memory: Memory | None = None
    held: int = 0  # positions of the text that the target's cache holds
    last_feature: Tensor | None = None  # [1, F], of the position before the next one to be read, while the prompt is read
    counts: TokenCounts | None = None
    acceptance: Acceptance | None = None
    prefill_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def positions(self) -> int:
        """How long prompt and answer can get."""
        return len(self.prompt) + self.limit

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def prefilled(self) -> bool:
        return self.held >= len(self.prompt)

    def emit(
        self,
        block: list[int],
        accepted: int,
        proposed: int,
        seconds: float,
        draft_seconds: float = 0.0,
        verify_seconds: float = 0.0,
        logprobs: list[TokenLogprob] | None = None,
    ) -> None:
        """Say a block, accepted tokens and the target's own, as far as the answer goes; what lies behind its end is dropped.

        A block is never longer than the room left, because no more than that is proposed. Does nothing once it has ended.
        A tokenizer is others' code: one that fails on a token ends this text, and nobody else's.
        """
        with self._lock:
            if self.finish_reason is not None:
                return
            try:
                kept, finish, shown = self._show(block)
            except Exception as error:
                self._end("error", f"tokens {block} cannot be shown, {type(error).__name__}: {first_line(error)}")
                return
            if kept <= accepted:  # see Step
                accepted = proposed = kept - 1
            self.tokens += block[:kept]
            if self.counts is not None:
                self.counts.add(torch.tensor(block[:kept], device=self.counts.seen.device))
            self.finish_reason = finish
            said = None if logprobs is None else tuple(logprobs[:kept])
            self.steps.append(Step(tuple(block[:kept]), accepted, proposed, seconds, draft_seconds, verify_seconds, finish, shown, said, self.index))

    def _show(self, block: list[int]) -> tuple[int, FinishReason | None, str | None]:
        """How many tokens of a block are said, why no more are if this ends the text, and what may be shown of it."""
        kept = next((i + 1 for i, token in enumerate(block) if token in self.stops), len(block))
        finish: FinishReason | None = "stop" if block[kept - 1] in self.stops else None
        shown = None
        if self.text is not None:
            # An end-of-answer token may be an ordinary word, which is not part of the text.
            delta = self.text.push(block[: kept - 1] if finish else block[:kept])
            shown = delta.text
            if delta.kept is not None:
                kept, finish = delta.kept, "stop"
        if finish is None and len(self.tokens) + kept >= self.limit:
            finish = "length"
        if finish is not None and self.text is not None and shown is not None:
            shown += self.text.finish()
        return kept, finish, shown

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        """End before its time, with what has been said so far. Does nothing once it has ended."""
        with self._lock:
            if self.finish_reason is None:
                self._end(reason, error)

    def _end(self, reason: FinishReason, error: str | None) -> None:
        self.finish_reason, self.error = reason, error
        rest = None if self.text is None else ""
        with suppress(Exception):  # a tokenizer that failed
            rest = None if self.text is None else self.text.finish()
        self.steps.append(Step((), 0, 0, 0.0, finish_reason=reason, text=rest, index=self.index))
