"""One completion in the making: what it has said, where its past lies, and when it ends."""

import threading
from collections import deque
from collections.abc import Sequence as ListOf
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from pard2.engine.draft_length.acceptance import Acceptance
from pard2.engine.draft_state import DraftState
from pard2.engine.processors import Barred, TokenCounts
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import FinishReason, Step
from pard2.engine.text import TextStream
from pard2.engine.verification import Verification
from pard2.errors import first_line
from pard2.runtime.kv_cache import CacheRegion


@dataclass(frozen=True)
class Memory:
    """What a sequence owns while it is decoded: its region of the target's cache, and
    what the draft knows of it."""

    region: CacheRegion
    draft: DraftState


@dataclass(eq=False, kw_only=True)
class Sequence:
    """One completion. One thread decodes it while another may end it (a cancelled stream): saying
    and ending exclude each other.

    prompt: token ids.
    seed: of its random numbers.
    index: among the n completions of its request.
    max_new_tokens: tokens that it may say at most.
    stop_token_ids: tokens that end it.
    text: its detokeniser, None without a tokenizer.
    tokens: said so far.
    steps: made, and not yet handed to the caller.
    memory: while it is decoded.
    num_computed_tokens: tokens of the text that the target's cache holds.
    """

    prompt: list[int]
    params: SamplingParams
    seed: int
    index: int
    max_new_tokens: int
    stop_token_ids: frozenset[int]
    text: TextStream | None

    tokens: list[int] = field(default_factory=list)
    steps: deque[Step] = field(default_factory=deque)
    finish_reason: FinishReason | None = None
    error: str | None = None

    memory: Memory | None = None
    num_computed_tokens: int = 0
    counts: TokenCounts | None = None
    acceptance: Acceptance | None = None
    prefill_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def positions(self) -> int:
        """How long prompt and answer can get."""
        return len(self.prompt) + self.max_new_tokens

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def room(self) -> int:
        """Tokens that it may yet say before its last one."""
        return self.max_new_tokens - len(self.tokens) - 1

    @property
    def prefilled(self) -> bool:
        return self.num_computed_tokens >= len(self.prompt)

    def barred(self, depths: ListOf[int]) -> Barred | None:
        """What may not be said yet in rows that stand so far behind the newest token; None for nothing."""
        if not self.may_not_end:
            return None
        missing = self.params.min_tokens - len(self.tokens)
        return Barred(tuple(self.stop_token_ids), tuple(row for row, depth in enumerate(depths) if depth < missing))

    @property
    def may_not_end(self) -> bool:
        """Whether the next token may be none of those that end it."""
        return len(self.tokens) < self.params.min_tokens and bool(self.stop_token_ids)

    def emit(self, verified: Verification, *, seconds: float, draft_seconds: float = 0.0, verify_seconds: float = 0.0) -> None:
        """Say accepted tokens and the target's own, as far as the answer goes; what
        lies behind its end is dropped.

        They are never more than there is room for, because no more are proposed. Does nothing once it has
        ended. A tokenizer is others' code: one that fails on a token ends this text, and nobody else's.

        seconds: of the cycle, of which draft_seconds and verify_seconds went into the two models.
        """
        block, accepted, proposed = verified.token_ids, verified.accepted, verified.proposed
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
            self.steps.append(
                Step(
                    token_ids=tuple(block[:kept]),
                    accepted=accepted,
                    proposed=proposed,
                    seconds=seconds,
                    draft_seconds=draft_seconds,
                    verify_seconds=verify_seconds,
                    finish_reason=finish,
                    text=shown,
                    logprobs=None if verified.logprobs is None else tuple(verified.logprobs[:kept]),
                    index=self.index,
                )
            )

    def _show(self, block: list[int]) -> tuple[int, FinishReason | None, str | None]:
        """How many tokens of a block are said, why no more are if this ends the text,
        and what may be shown of it."""
        kept = next((i + 1 for i, token in enumerate(block) if token in self.stop_token_ids), len(block))
        finish: FinishReason | None = "stop" if block[kept - 1] in self.stop_token_ids else None
        shown = None
        if self.text is not None:
            # An end-of-answer token may be an ordinary word, which is no part of the text unless asked for.
            delta = self.text.push(block[: kept - 1] if finish and not self.params.include_stop_str_in_output else block[:kept])
            shown = delta.text
            if delta.kept is not None:
                kept, finish = delta.kept, "stop"
        if finish is None and len(self.tokens) + kept >= self.max_new_tokens:
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
        self.steps.append(Step(token_ids=(), accepted=0, proposed=0, seconds=0.0, finish_reason=reason, text=rest, index=self.index))
