"""The decoding methods by name: which one suits a draft, what each needs, and the drafter that carries it out."""

from typing import Any, Literal

from pard2.engine.drafters.autoregressive import AutoregressiveDrafter
from pard2.engine.drafters.base import Drafter
from pard2.engine.drafters.parallel import ParallelDrafter
from pard2.engine.drafters.plain import PlainDrafter
from pard2.engine.sampling import is_whole
from pard2.errors import Pard2Error
from pard2.models.draft import Draft
from pard2.models.target import Target

METHODS = ("ar", "vsd", "pard", "pard2-ti", "pard2-td")
# "auto" adapts to what proposals bring and cost; "full" always proposes as many as there may be.
DraftTokens = int | Literal["auto", "full"]

# An ordinary LM was trained for no number of proposals; each costs a pass, so "auto" and "full" look no further than this.
_MOST_ONE_BY_ONE = 8
_MOST = 2**53  # sequences or positions, of which no machine holds so many


def check_method(name: str, has_draft: bool) -> str:
    """The name itself. Raises `Pard2Error` if there is no such method or it lacks its draft."""
    if name not in METHODS:
        raise Pard2Error(f"-m {name!r} is not one of {', '.join(METHODS)}")
    if name != "ar" and not has_draft:
        raise Pard2Error(f"-m {name} needs a draft; name one with -d, or use -m ar")
    return name


def choose_method(name: str | None, draft: Draft | None) -> str:
    """The method asked for, or by default the best that the draft allows.

    `pard` and `pard2-ti` are one procedure; by default it is called what the draft was trained as.
    Raises `Pard2Error` for a method that the draft cannot carry out.
    """
    if name is None:
        if draft is None:
            return "ar"
        if draft.spec is None:
            return "vsd"
        if draft.projection is not None:
            return "pard2-td"
        return "pard" if draft.spec.target_layers is None else "pard2-ti"
    check_method(name, draft is not None)
    if draft is not None and name.startswith("pard"):
        if draft.spec is None:
            raise Pard2Error(f"-m {name}: draft {draft.name!r} has no mask token (`pard_token`); use -m vsd, or another draft with -d")
        if name == "pard2-td" and draft.projection is None:
            raise Pard2Error(f"-m pard2-td: draft {draft.name!r} has no projection; use -m pard2-ti, or another draft with -d")
    return name


def check_draft_tokens(asked: DraftTokens, method: str, draft: Draft | None) -> int:
    """The number of tokens to propose, for "auto" and "full" the most that may be; 0 without a draft.

    Raises `Pard2Error` for anything below 1 or above what the draft was trained for.
    """
    trained = draft.spec.draft_tokens if draft is not None and draft.spec is not None and method.startswith("pard") else None
    if asked in ("auto", "full"):
        return 0 if method == "ar" else trained or _MOST_ONE_BY_ONE
    if not isinstance(asked, int) or isinstance(asked, bool):
        raise Pard2Error(f"--draft-tokens {asked!r} is neither a number nor 'auto' or 'full'")
    if asked < 1:
        raise Pard2Error(f"--draft-tokens {asked}: at least 1 is needed; for no draft at all use -m ar")
    if trained is not None and asked > trained:
        raise Pard2Error(f"--draft-tokens {asked}: this draft was trained for {trained} at most")
    return 0 if method == "ar" else asked


def check_rules(max_batch: Any, cache_tokens: Any, draft_sampling: str, verification: str) -> None:
    """Raises `Pard2Error` for engine options that mean nothing, or nothing together."""
    if not is_whole(max_batch, 1, _MOST):
        raise Pard2Error(f"--batch-size {max_batch}: give a whole number; at least 1 is needed")
    if cache_tokens is not None and not is_whole(cache_tokens, 2, _MOST):
        raise Pard2Error(f"--cache-tokens {cache_tokens}: give a whole number; at least a prompt and an answer must fit")
    if draft_sampling not in ("greedy", "sampled"):
        raise Pard2Error(f"--draft-sampling {draft_sampling!r} is neither greedy nor sampled")
    if verification not in ("token", "block"):
        raise Pard2Error(f"--verification {verification!r} is neither token nor block")
    if verification == "block" and draft_sampling == "greedy":
        raise Pard2Error("--verification block gains nothing with greedy proposals; add --draft-sampling sampled")


def new_drafter(method: str, target: Target, draft: Draft | None, positions: int) -> Drafter:
    """The drafter of a method. positions: of its cache, for all sequences together."""
    if method == "ar" or draft is None:
        return PlainDrafter(target.device)
    if method == "vsd":
        return AutoregressiveDrafter(draft, target.vocab_size, positions)
    return ParallelDrafter(draft, method == "pard2-td", target.vocab_size, positions)
