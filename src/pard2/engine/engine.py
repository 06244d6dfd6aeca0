"""Lossless decoding: a drafter proposes, the target verifies, and what comes out is the target's own greedy text.

The engine runs the cycle of METHOD: section 5 for one sequence at a time. It does not know how proposals
come about (drafters), which of them stand (verification) or how many to ask for (draft length).
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pard2.engine.draft_length import DraftLength
from pard2.engine.methods import check_draft_tokens, check_method, choose_method, new_drafter
from pard2.engine.prompts import Prompt, encode_prompt
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import FinishReason, Stats, Step
from pard2.engine.timing import Stopwatch
from pard2.engine.verification import verify_greedy
from pard2.errors import Pard2Error
from pard2.models.cache import KVCache
from pard2.models.checkpoint import load_draft
from pard2.models.draft import Draft
from pard2.models.loading import parse_dtype
from pard2.models.target import Target

_ROOM = 1024  # new tokens that the caches make room for at first


@dataclass(frozen=True)
class Completion:
    """What one prompt brought.

    token_ids: the new tokens, with the end-of-answer token where finish_reason is "stop". text: without
    it and other special tokens; None where the target has no tokenizer. prompt_tokens: how many the prompt had.
    """

    token_ids: list[int]
    text: str | None
    finish_reason: FinishReason
    prompt_tokens: int
    stats: Stats
    method: str


class Engine:
    """A target, the draft that speeds it up, and a method of drafting.

    method: one of `ar`, `vsd`, `pard`, `pard2-ti`, `pard2-td`; by default the best that the draft allows.
    draft_tokens: how many tokens to propose in a cycle, or "auto", which adapts to what past cycles accepted
    and cost, from prompt to prompt. The draft must be in evaluation mode. Engines may share models, and completions of
    one engine may be streamed in turns. Raises `Pard2Error` where method, draft and draft_tokens do not fit.
    """

    def __init__(self, target: Target, draft: Draft | None = None, method: str | None = None, draft_tokens: int | Literal["auto"] = "auto") -> None:
        self.target = target
        self.draft = draft
        self.method = choose_method(method, draft)
        self.draft_tokens = check_draft_tokens(draft_tokens, self.method, draft)
        self._adaptive = DraftLength(self.draft_tokens) if draft_tokens == "auto" and self.draft_tokens else None
        target.capture(new_drafter(self.method, target, draft, 0).feature_layers)  # refuse layers that the target lacks at once

    @classmethod
    def from_pretrained(
        cls,
        target: str,
        draft: str | None = None,
        method: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        draft_tokens: int | Literal["auto"] = "auto",
    ) -> "Engine":
        """Load both models by hub id or directory. dtype: bfloat16 by default. device: the GPU where there is one.

        Raises `Pard2Error` for whatever cannot be loaded or does not fit together.
        """
        if method is not None:
            check_method(method, draft is not None)  # before the long load
        loaded = Target.from_pretrained(target, dtype, device)
        if draft is None or method == "ar":
            return cls(loaded, None, method, draft_tokens)
        target_dependent = None if method is None else method == "pard2-td"
        return cls(loaded, load_draft(draft, loaded, parse_dtype(dtype), target_dependent), method, draft_tokens)

    def generate(self, prompts: Iterable[Prompt], params: SamplingParams | None = None, raw: bool = False) -> Iterator[Completion]:
        """Complete prompts one after the other, in order.

        raw: take texts as they are, without the chat template. All prompts are checked before the first is decoded:
        raises `Pard2Error` for one that is empty or longer than the context.
        """
        if isinstance(prompts, str):
            raise Pard2Error("generate takes a list of prompts; wrap a single one in [...]")
        encoded = [encode_prompt(self.target, prompt, raw) for prompt in prompts]
        return (self._complete(ids, params or SamplingParams()) for ids in encoded)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, raw: bool = False) -> Iterator[Step]:
        """Complete one prompt step by step: the prompt's pass, then each cycle; `Stats.of(steps)` sums them up.

        The last step carries the finish reason. Raises as `generate` does.
        """
        return self._decode(encode_prompt(self.target, prompt, raw), params or SamplingParams())

    def _complete(self, prompt: list[int], params: SamplingParams) -> Completion:
        steps = list(self._decode(prompt, params))
        token_ids = [token for step in steps for token in step.token_ids]
        finish = steps[-1].finish_reason
        assert finish is not None
        text = None
        if self.target.tokenizer is not None:
            said = token_ids[:-1] if finish == "stop" else token_ids
            text = str(self.target.tokenizer.decode(said, skip_special_tokens=True))
        return Completion(token_ids, text, finish, len(prompt), Stats.of(steps), self.method)

    @torch.inference_mode()  # on a generator, in force only while it runs
    def _decode(self, prompt: list[int], params: SamplingParams) -> Iterator[Step]:
        started = time.perf_counter()
        # The last token is never read by the target, so it may lie just past the context.
        limit = min(params.max_tokens, self.target.context_length - len(prompt) + 1)
        stops = frozenset() if params.ignore_eos else self.target.eos_token_ids
        capacity = len(prompt) + min(limit, _ROOM) + self.draft_tokens
        cache = KVCache(self.target.num_states - 1, capacity)
        drafter = new_drafter(self.method, self.target, self.draft, capacity)
        watch = Stopwatch(self.target.device)

        tokens = torch.tensor([prompt], device=self.target.device)
        nothing = tokens[:, :0]
        logits, features = self._run(tokens, cache, drafter.feature_layers, num_logits=1)
        if drafter.limit(len(prompt) + 1) > 0:
            drafter.prefill(tokens, features)
        verification = verify_greedy(logits, nothing)
        emitted, finish = _cut(verification.token_ids, stops, limit)
        yield Step(tuple(emitted), 0, 0, time.perf_counter() - started, finish_reason=finish)

        features = None if features is None else features[:, -1:]
        count = 1  # tokens emitted so far
        while finish is None:
            started = time.perf_counter()
            wanted = self.draft_tokens if self._adaptive is None else self._adaptive.choose()
            k = min(wanted, drafter.limit(len(prompt) + count), limit - count - 1)
            watch.mark()
            proposed = nothing
            if k > 0:
                drafter.absorb(verification.tokens, features)
                proposed = drafter.propose(k).token_ids
            watch.mark()
            logits, features = self._run(torch.cat([verification.tokens[:, -1:], proposed], dim=1), cache, drafter.feature_layers)
            watch.mark()
            verification = verify_greedy(logits, proposed)
            accepted = verification.accepted
            cache.truncate(cache.length - (k - accepted))
            features = None if features is None else features[:, : accepted + 1]
            emitted, finish = _cut(verification.token_ids, stops, limit - count)
            count += len(emitted)
            draft_seconds, verify_seconds = watch.stretches()
            seconds = time.perf_counter() - started
            if self._adaptive is not None and k > 0:
                self._adaptive.observe(k, accepted, seconds)
            if len(emitted) <= accepted:  # cut inside the accepted block: see Step
                k = accepted = len(emitted) - 1
            yield Step(tuple(emitted), accepted, k, seconds, draft_seconds, verify_seconds, finish)

    def _run(self, token_ids: Tensor, cache: KVCache, layers: tuple[int, ...], num_logits: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits and features of new tokens [1, T]."""
        if self.target.feature_layers != layers:  # another engine may have used this target since
            self.target.capture(layers)
        output = self.target.forward(token_ids, cache, num_logits)
        assert output.logits is not None
        return output.logits, output.features


def _cut(token_ids: list[int], stops: frozenset[int], room: int) -> tuple[list[int], FinishReason | None]:
    """What of a block may be emitted (nothing after a stop token), and whether it ends the answer.

    A block is never longer than `room`, because no more than `room - 1` tokens are proposed.
    """
    for i, token in enumerate(token_ids):
        if token in stops:
            return token_ids[: i + 1], "stop"
    return token_ids, "length" if len(token_ids) == room else None
