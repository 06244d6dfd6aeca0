"""Lossless decoding: a drafter proposes, the target verifies, and what comes out is
what the target alone would say.

The engine is what callers hold: `generate`, `stream` and `submit` take requests, and `step` decodes for
whoever waits. Who takes part is `Scheduler`'s business, what happens in a cycle `Cycle`'s.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from collections.abc import Sequence as ListOf
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from pard2.engine.capacity import cache_positions
from pard2.engine.cycle import Cycle
from pard2.engine.draft_length.adaptive import AdaptiveDraftLength
from pard2.engine.methods import METHODS, make_drafter
from pard2.engine.new_request import new_request
from pard2.engine.options import DraftTokens, EngineOptions
from pard2.engine.pair import Pair
from pard2.engine.prompts import Prompt, as_list
from pard2.engine.request import Completion, OnStep, Request
from pard2.engine.sampling import SamplingParams
from pard2.engine.scheduler import Scheduler
from pard2.engine.statistics import Step, Totals
from pard2.engine.threads import decoding_threads
from pard2.errors import Pard2Error, first_line
from pard2.models.any_draft import AnyDraft
from pard2.models.target import Target, Tokenizer
from pard2.runtime.support import check_trees

Result = TypeVar("Result")


class Engine:
    """A target, the draft that speeds it up, and a method of drafting.

    method: one of `methods.METHODS`; by default the best that the draft allows.
    draft_tokens: how many tokens to propose in a cycle; "full", or "auto".
    options: all other fields of `EngineOptions`, by name.

    The draft must be in evaluation mode. Engines may share models, in one thread; of several threads that
    share an engine one decodes at a time, and the others wait for it. Raises `Pard2Error` where method,
    draft and options do not fit.
    """

    def __init__(
        self, target: Target, draft: AnyDraft | None = None, method: str | None = None, draft_tokens: DraftTokens = "auto", **options: Any
    ) -> None:
        self.options = EngineOptions(method=method, draft_tokens=draft_tokens, **options).fitted(draft)
        assert self.options.method is not None
        self.target = target
        self.draft = draft
        self.method = self.options.method
        self.draft_tokens = self.options.most_draft_tokens(draft)
        chosen, max_batch = METHODS[self.method], self.options.max_batch
        used = draft if chosen.needs else None
        # A model that cannot be decoded in batches is refused now, not in the middle of a text.
        for model in (target,) if used is None else (target, used):
            model.get_ready(self.options.cuda_graphs, max_batch)
        self.cache_tokens = self.options.cache_tokens or cache_positions(target, used, max_batch)
        self.options.check_tree_fits(self.cache_tokens)
        if self.options.tree != 0:
            check_trees(target.decoder, target.name)
        drafter = make_drafter(self.options, target, used, self.cache_tokens)
        target.check_layers(drafter.feature_layers)
        adaptive = draft_tokens == "auto" and self.draft_tokens > 0
        lengths = AdaptiveDraftLength(self.draft_tokens, chosen.sequential) if adaptive else None
        self._threads = decoding_threads(target.model, used)
        self._scheduler = Scheduler(target, drafter, self.cache_tokens, max_batch, lengths)
        self._cycle = Cycle(target, drafter, self._scheduler.cache, self.draft_tokens, lengths, self.options)
        # Reentrant: a callback may submit and cancel, and a forgotten stream is closed wherever its
        # memory happens to be freed.
        self._lock = threading.RLock()
        self._in_pass = self._closed = False
        self._worker: ThreadPoolExecutor | None = None

    @classmethod
    def from_pretrained(
        cls,
        target: str,
        draft: str | None = None,
        method: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        draft_tokens: DraftTokens = "auto",
        weights: str = "auto",
        **options: Any,
    ) -> "Engine":
        """Load both models by hub id or directory.

        draft: for the target "smollm2" the embedded one by default.
        dtype: bfloat16 by default; "auto" is the checkpoint's.
        device: the GPU where there is one.
        weights: in which form a CPU keeps the target's; "auto" and "bf16" as they are, "int8" with one
            scale for each output, which is faster and another model by a hair: lossless against itself.
        options: `revision`, branch, tag or commit of the target (a draft is named ID@REVISION); `token`, for
            the hub, in place of HF_TOKEN or that of `hf auth login`; `local_files_only`, ask no server.
        The rest as for `Engine`. Raises `Pard2Error` for whatever cannot be loaded or does not fit together.
        """
        of_hub = {name: options.pop(name) for name in ("revision", "token", "local_files_only") if name in options}
        asked = EngineOptions(method=method, draft_tokens=draft_tokens, **options)
        return cls(*Pair(target=target, draft=draft, dtype=dtype, device=device, weights=weights, **of_hub).load(asked), **vars(asked))

    def close(self) -> None:
        """Cancel what has not been answered, and let go of both models and the cache.

        Whatever else is asked of the engine then raises `Pard2Error`.
        """
        with self._lock:
            if self._closed:
                return
            self._scheduler.cancel_all()
            self._closed = True
            if self._worker is not None:
                self._worker.shutdown(wait=False)
            del self.target, self.draft, self._scheduler, self._cycle, self._threads

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("_closed"):  # called only for what it has no more
            raise Pard2Error("the engine is closed; make another")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        if self._closed:
            return "<Engine, closed>"
        draft = "" if self.draft is None else f" with draft {self.draft.name!r}"
        return f"<Engine {self.target.name!r}{draft}: {self.method} on {self.target.device}>"

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The target's; None where it has none."""
        return self.target.tokenizer

    @property
    def totals(self) -> Totals:
        """What this engine has done so far, every pass counted once."""
        return self._cycle.totals

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs; then all of the cache is free."""
        return self._scheduler.idle

    @property
    def free_cache_tokens(self) -> int:
        """Positions of the cache that no sequence owns."""
        return self._scheduler.cache.free

    # --- all at once ------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | ListOf[SamplingParams] | None = None,
        raw: bool = False,
    ) -> list[Completion]:
        """Complete prompts together, up to `max_batch` at once; in the prompts' order, n of each.

        prompts: several, or one: a text, a conversation (a list of messages) or a dict of `messages`.
        params: for all prompts, or one for each.
        raw: take texts as they are, without the chat template.

        All prompts are checked before the first is decoded: raises `Pard2Error` for one that is empty or does
        not fit. What fails later (finish_reason "error") fails alone.
        """
        return list(self.completions(prompts, params, raw))

    def completions(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | ListOf[SamplingParams] | None = None,
        raw: bool = False,
    ) -> Iterator[Completion]:
        """`generate`, each completion as soon as it and all before it are there.

        Checks, and raises, at the call. Closing the iterator cancels what has not been made yet.
        """
        several = as_list(prompts)
        each = list(params) if isinstance(params, ListOf) else [params] * len(several)
        if len(each) != len(several):
            raise Pard2Error(f"there are {len(several)} prompts and {len(each)} SamplingParams; give one for all, or one for each")
        requests: deque[Request] = deque()
        for number, (prompt, one) in enumerate(zip(several, each, strict=True)):
            try:
                requests.append(self._request(prompt, one, raw))
            except Pard2Error as error:
                raise Pard2Error(f"prompt {number}: {error}" if len(several) > 1 else str(error)) from None
        return self._completions(requests)

    def _completions(self, requests: deque[Request]) -> Iterator[Completion]:
        try:
            self.enqueue(list(requests))
            while requests:
                while not requests[0].done:
                    self.step()
                yield from requests.popleft().completions()  # and is forgotten: a long list would keep every step of all
        finally:
            for request in requests:
                request.cancel()
            self.tidy()

    # --- piece by piece ---------------------------------------------------------------------------

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, raw: bool = False) -> Generator[Step, None, None]:
        """Complete one prompt step by step: the prompt's pass, then each cycle;
        `Stats.of(steps)` sums them up.

        The last step of a completion carries the finish reason; `step.text` is what may be shown by then.
        Other streams and requests of this engine go on meanwhile. Closing the iterator cancels the request.
        Raises as `generate` does, and `Pard2Error` when it fails on the way.
        """
        return self._stream(self._request(prompt, params, raw))

    def _stream(self, request: Request) -> Generator[Step, None, None]:
        try:
            self.enqueue([request])
            while True:
                yield from request.take_steps()
                if request.done and not any(sequence.steps for sequence in request.sequences):
                    break
                self.step()
            _raise_failure(request)
        finally:
            request.cancel()
            self.tidy()

    def astream(self, prompt: Prompt, params: SamplingParams | None = None, raw: bool = False) -> AsyncIterator[Step]:
        """`stream` for asyncio: any number of them share this engine's batches.

        Cancelling the task cancels the request.
        """
        return self._astream(self._request(prompt, params, raw))

    async def _astream(self, request: Request) -> AsyncIterator[Step]:
        try:
            await self._in_worker(lambda: self.enqueue([request]))
            while True:
                for step in request.take_steps():
                    yield step
                if request.done and not any(sequence.steps for sequence in request.sequences):
                    break
                await self._in_worker(lambda: self._step_for(request))
            _raise_failure(request)
        finally:
            request.cancel()
            if not self._closed:
                self._get_worker().submit(self.tidy)  # not awaited: a cancelled task may not wait

    def _step_for(self, request: Request) -> None:
        """A cycle, unless others' cycles have brought this request something while it waited for its turn."""
        if not request.done and not any(sequence.steps for sequence in request.sequences):
            self.step()

    async def _in_worker(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._get_worker(), work)

    def _get_worker(self) -> ThreadPoolExecutor:
        # One thread, always the same: every further one would bring a pool of torch threads of its own.
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="pard2")
        return self._worker

    # --- request by request -----------------------------------------------------------------------

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, raw: bool = False, on_step: OnStep | None = None) -> Request:
        """Put a prompt into the queue. It is decoded by `step`, whoever calls it;
        `on_step` sees each of its steps.

        Raises `Pard2Error` as `generate` does.
        """
        request = self._request(prompt, params, raw, on_step)
        self.enqueue([request])
        return request

    def step(self) -> None:
        """Let who fits join, read prompts, and run one cycle; does nothing when idle.

        Raises what a failing pass raises, `Pard2Error` where memory did not suffice; every request that was
        being decoded then ends with finish_reason "error", and those that wait go on with the next step.
        """
        with self._lock:
            self._scheduler.sweep()
            self._in_pass = True
            try:
                self._scheduler.admit()
                with torch.inference_mode(), self._threads.decoding():
                    self._cycle.prefill(self._scheduler.next_chunks())
                    self._cycle.decode(self._scheduler.decoding())
            except BaseException as error:
                # A pass that failed left caches and draft states half-written; a request
                # must not go on from there.
                for sequence in self._scheduler.sequences:
                    sequence.end("error", f"decoding stopped, {type(error).__name__}: {first_line(error)}")
                if isinstance(error, torch.OutOfMemoryError):
                    raise Pard2Error(f"{self.target.device} ran out of memory; give a smaller `max_batch` or `cache_tokens`") from error
                raise
            finally:
                self._in_pass = False
                self._scheduler.sweep()

    def enqueue(self, requests: Iterable[Request]) -> None:
        """Put requests of `new_request` into the queue: what `submit` does for its own."""
        with self._lock:
            self._scheduler.enqueue(requests)

    def tidy(self) -> None:
        """Forget what was cancelled, at once.

        In the middle of a pass, whose sequences must stay, `step` does so after it.
        """
        with self._lock:
            if not self._in_pass and not self._closed:
                self._scheduler.sweep_queue()

    def _request(self, prompt: Prompt, params: SamplingParams | None, raw: bool, on_step: OnStep | None = None) -> Request:
        return new_request(self.target, self.method, self.cache_tokens, prompt, params, raw, on_step)


def _raise_failure(request: Request) -> None:
    failed = next((sequence for sequence in request.sequences if sequence.finish_reason == "error"), None)
    if failed is not None:
        raise Pard2Error(str(failed.error))
