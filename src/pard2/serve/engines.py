"""The engine that answers, and a few more for requests that ask to be drafted in another way.

All share the models and say the same text. Only the thread that decodes makes, steps and closes engines.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pard2.engine.engine import Engine
from pard2.engine.methods import METHODS
from pard2.engine.options import EngineOptions
from pard2.engine.statistics import Totals
from pard2.errors import Pard2Error
from pard2.models.draft_kind import DraftKind


def public_name(name: str) -> str:
    """What clients are told of a model: of a directory or a file its name, and not where it lies."""
    return Path(name).name if os.path.exists(name) else name


@dataclass(frozen=True)
class Way:
    """How an answer is drafted. cache_tokens: that a prompt and its answer must fit into."""

    options: EngineOptions
    cache_tokens: int

    @property
    def method(self) -> str:
        assert self.options.method is not None
        return self.options.method


class Engines:
    """The first engine, and at most `most` others; the idle one that was used longest ago makes room."""

    def __init__(self, first: Engine, most: int) -> None:
        self.first = first
        self.target, self.draft = first.target, first.draft
        self._most = most
        self._usual = Way(first.options, first.cache_tokens)
        self._others: dict[Way, Engine] = {}  # the one used last at the end
        self._closed = Totals()  # of those that are closed

    def way(self, method: str | None, draft_tokens: Any) -> Way:
        """How a request wants to be drafted. Any thread may ask.

        Raises `Pard2Error` for what the draft cannot do, or the server does not allow.
        """
        usual = self._usual.options
        if draft_tokens is None and method in (None, usual.method):
            return self._usual
        if method in (None, usual.method):
            options = replace(usual, draft_tokens=draft_tokens)
        else:  # chains: what else the first engine does may not go with this method
            options = EngineOptions(
                method=method,
                draft_tokens="auto" if draft_tokens is None else draft_tokens,
                draft_sampling=usual.draft_sampling,
                verification=usual.verification,
                max_batch=usual.max_batch,
                cuda_graphs=usual.cuda_graphs,
            )
        options = options.fitted(self.draft)
        options.most_draft_tokens(self.draft)
        if options == usual:
            return self._usual
        if self._most == 0:
            raise Pard2Error(f"`pard2` asks for another method or draft length than this server's, {usual.method}; it is started with --engines 0")
        # Room for one full context: these are for comparing, and memory is for the first.
        places = min(self._usual.cache_tokens, self.target.context_length + 1)
        return Way(replace(options, cache_tokens=places), places)

    def get(self, way: Way) -> Engine:
        """The engine that drafts so. Raises `Pard2Error` where another cannot be made, or all are busy."""
        if way == self._usual:
            return self.first
        engine = self._others.pop(way, None)
        if engine is None:
            if len(self._others) >= self._most:
                self._close_one()
            engine = Engine(self.target, self.draft, **vars(way.options))
        self._others[way] = engine
        return engine

    def _close_one(self) -> None:
        way = next((way for way, engine in self._others.items() if engine.idle), None)
        if way is None:
            raise Pard2Error("all engines for other methods and draft lengths are busy; try again later, or leave `pard2` away")
        engine = self._others.pop(way)
        self._closed += engine.totals
        engine.close()

    @property
    def methods(self) -> list[str]:
        """That a request may ask for."""
        if self._most == 0:
            return [self.first.method]
        kind = DraftKind.NONE if self.draft is None else self.draft.kind
        return [name for name, method in METHODS.items() if kind.can(method.needs)]

    @property
    def all(self) -> list[Engine]:
        return [self.first, *self._others.values()]

    @property
    def idle(self) -> bool:
        return all(engine.idle for engine in self.all)

    @property
    def totals(self) -> Totals:
        """What all of them have done so far. Any thread may ask."""
        total = self._closed
        for engine in self.all:
            with suppress(Pard2Error):  # one that is being closed
                total += engine.totals
        return total

    def close(self) -> None:
        """Cancel everything, and let go of the models."""
        for engine in self.all:
            engine.close()
        self._others.clear()
