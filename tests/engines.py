"""Engines of every method over one tiny target, for what must hold whatever the method."""

from functools import cache
from typing import Any

from fitted_eagle3 import fitted_eagle3
from pard2 import Engine
from pard2.models.any_draft import AnyDraft
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target
from tiny import pard_draft, tiny_draft, tiny_lm_draft, tiny_target
from tiny_eagle3 import tiny_eagle3

METHODS = ("ar", "ngram", "vsd", "pard", "pard2-ti", "pard2-td", "eagle3")
DRAFTED = METHODS[2:]


@cache
def shared_target() -> Target:
    """Not to be changed: tests share it."""
    return tiny_target()


@cache
def _shared_draft(method: str) -> AnyDraft | None:
    return new_draft(method, shared_target())


@cache
def _fitted() -> Eagle3Draft:
    return fitted_eagle3(shared_target())


def new_draft(method: str, target: Target) -> AnyDraft | None:
    """One whose proposals are sometimes right. A draft of another target's shape would do, too."""
    if method in ("ar", "ngram"):
        return None
    if method == "vsd":
        return tiny_lm_draft()
    if method == "eagle3":
        draft = tiny_eagle3(target, 55)
        draft.load_state_dict(_fitted().state_dict())
        return draft
    return pard_draft(target) if method == "pard" else tiny_draft(target)


def new_engine(method: str, draft_tokens: Any = 4, target: Target | None = None, **options: Any) -> Engine:
    if target is None:
        return Engine(shared_target(), _shared_draft(method), method, draft_tokens, **options)
    return Engine(target, new_draft(method, target), method, draft_tokens, **options)


def record_proposals(engine: Engine) -> list[list[int]]:
    """A list that every later proposal is added to: sensitive to whatever the draft reads, where
    acceptance may be low anyway."""
    proposed: list[list[int]] = []
    drafter = engine._cycle._drafter
    propose = drafter.propose

    def recording(requests: Any, selector: Any) -> Any:
        drafted = propose(requests, selector)
        proposed.extend(proposal.token_ids.tolist() for proposal in drafted.proposals if proposal.num_nodes)
        return drafted

    drafter.propose = recording  # type: ignore[method-assign]
    return proposed


def is_empty(engine: Engine) -> bool:
    """Whether nothing is left in it: no request, no sequence, not a row of the target's
    cache nor of the draft's."""
    drafter = engine._cycle._drafter
    drafter = getattr(drafter, "_drafter", drafter)  # behind `NgramFirst`
    drafts_free = engine.draft is None or drafter.cache.free == drafter.cache.num_places  # type: ignore[attr-defined]
    return engine.idle and not engine._scheduler.sequences and engine.free_cache_tokens == engine.cache_tokens and drafts_free


def run_dry(engine: Engine, most: int = 10_000) -> None:
    """Steps until nobody waits or runs."""
    for _ in range(most):
        if engine.idle:
            return
        engine.step()
    raise AssertionError(f"not idle after {most} steps")
