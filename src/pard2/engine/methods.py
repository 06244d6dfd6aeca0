"""The decoding methods by name: what each needs, and the drafter that carries it out.

The only place that lists them. It imports no torch, so that the command line can name them at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pard2.checkpoints.embedded import EMBEDDED
from pard2.errors import Pard2Error
from pard2.models.draft_kind import DraftKind

if TYPE_CHECKING:
    from pard2.engine.drafters.base import Drafter
    from pard2.engine.options import EngineOptions
    from pard2.models.any_draft import AnyDraft
    from pard2.models.target import Target

    NewDrafter = Callable[[Target, AnyDraft | None, int, EngineOptions], Drafter]


def _plain(target: "Target", draft: "AnyDraft | None", positions: int, options: "EngineOptions") -> "Drafter":
    from pard2.engine.drafters.plain import PlainDrafter

    return PlainDrafter(target.device)


def _ngram(target: "Target", draft: "AnyDraft | None", positions: int, options: "EngineOptions") -> "Drafter":
    from pard2.engine.drafters.ngram import NgramDrafter

    return NgramDrafter(options.shortest_match, options.ngram_max, options.most_copied, target.device)


def _autoregressive(target: "Target", draft: "AnyDraft | None", positions: int, options: "EngineOptions") -> "Drafter":
    from pard2.engine.drafters.autoregressive import AutoregressiveDrafter
    from pard2.models.draft import Draft

    assert isinstance(draft, Draft)
    return AutoregressiveDrafter(draft, target.vocab_size, positions)


def _target_independent(target: "Target", draft: "AnyDraft | None", positions: int, options: "EngineOptions") -> "Drafter":
    from pard2.engine.drafters.parallel import ParallelDrafter
    from pard2.models.draft import Draft

    assert isinstance(draft, Draft)
    return ParallelDrafter(draft, False, target.vocab_size, positions)


def _target_dependent(target: "Target", draft: "AnyDraft | None", positions: int, options: "EngineOptions") -> "Drafter":
    from pard2.engine.drafters.parallel import ParallelDrafter
    from pard2.models.draft import Draft

    assert isinstance(draft, Draft)
    return ParallelDrafter(draft, True, target.vocab_size, positions)


def _eagle3(target: "Target", draft: "AnyDraft | None", positions: int, options: "EngineOptions") -> "Drafter":
    from pard2.engine.drafters.eagle3 import Eagle3Drafter
    from pard2.models.eagle3 import Eagle3Draft

    assert isinstance(draft, Eagle3Draft)
    if draft.vocab_size != target.vocab_size:
        raise Pard2Error(
            f"`draft` {draft.name!r} was made for a vocabulary of {draft.vocab_size}, the target {target.name!r} has one of {target.vocab_size}; "
            "name the target that it was made for"
        )
    width = 0 if options.tree == 0 else options.tree_width(draft)
    return Eagle3Drafter(draft, target.vocab_size, positions, width, options.most_draft_tokens(draft), options.max_batch)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to decode.

    title: its name for people.
    needs: the least that a draft must be; `DraftKind.NONE` where none is used.
    suits: the kind of draft that it is the default for; None for no kind.
    new_drafter: makes the drafter. positions: of the drafter's cache, for all sequences together.
    proposes: whether it proposes anything.
    sequential: whether each further guess costs a pass of the draft.
    trees: whether it can propose trees.
    """

    title: str
    needs: DraftKind
    suits: DraftKind | None
    new_drafter: "NewDrafter"
    proposes: bool = True
    sequential: bool = False
    trees: bool = False

    @property
    def loads_projection(self) -> bool:
        """Whether it wants the draft's projection loaded."""
        return self.needs is DraftKind.PROJECTED


PLAIN = "ar"  # decoding without a draft, which every other method is compared with
NGRAM = "ngram"  # proposals without a draft
EAGLE3 = "eagle3"
PARD2_TD, PARD2_TI = "pard2-td", "pard2-ti"  # one draft, with the target's features and without
# `pard` and `pard2-ti` are one procedure, called what the draft was trained as.
METHODS = {
    PLAIN: Method(title="plain decoding", needs=DraftKind.NONE, suits=DraftKind.NONE, new_drafter=_plain, proposes=False),
    NGRAM: Method(title="prompt lookup", needs=DraftKind.NONE, suits=None, new_drafter=_ngram),
    "vsd": Method(title="vanilla speculative", needs=DraftKind.LM, suits=DraftKind.LM, new_drafter=_autoregressive, sequential=True),
    "pard": Method(title="PARD", needs=DraftKind.MASKED, suits=DraftKind.MASKED, new_drafter=_target_independent, trees=True),
    PARD2_TI: Method(title="PARD-2 TI", needs=DraftKind.MASKED, suits=DraftKind.LAYERED, new_drafter=_target_independent, trees=True),
    PARD2_TD: Method(title="PARD-2 TD", needs=DraftKind.PROJECTED, suits=DraftKind.PROJECTED, new_drafter=_target_dependent, trees=True),
    EAGLE3: Method(title="EAGLE-3", needs=DraftKind.EAGLE3, suits=DraftKind.EAGLE3, new_drafter=_eagle3, sequential=True, trees=True),
}


def find_method(name: str) -> Method:
    """The method of this name. Raises `Pard2Error` if there is none."""
    if name not in list(METHODS):
        raise Pard2Error(f"`method` {name!r} is not one of {', '.join(METHODS)}; a model is named with `target`")
    return METHODS[name]


def choose_draft(target: str, draft: str | None, method: str | None) -> str | None:
    """The draft's name: the embedded one where none is named for the embedded target and one is needed."""
    if draft is None and target == EMBEDDED and (method is None or find_method(method).needs):
        return EMBEDDED
    return draft


def check_has_draft(name: str | None, has_draft: bool) -> None:
    """Raises `Pard2Error` for a method that needs a draft where there is none."""
    if name is not None and find_method(name).needs and not has_draft:
        raise Pard2Error(f"`method` {name} needs a draft; name one with `draft`, or use `method` {PLAIN} or {NGRAM}")


def methods_for(kind: DraftKind) -> list[str]:
    """The methods that a draft of this kind was trained for, the best first: for PARD-2, with the target's
    features and without.
    """
    least = kind if kind is DraftKind.EAGLE3 else min(kind, DraftKind.LAYERED)
    return [name for name, method in reversed(METHODS.items()) if method.suits is not None and least <= method.suits <= kind]


def choose_method(name: str | None, draft: "AnyDraft | None") -> str:
    """The method asked for, or by default the best that the draft allows.

    Raises `Pard2Error` for a method that the draft cannot carry out.
    """
    kind = DraftKind.NONE if draft is None else draft.kind
    if name is None:
        return methods_for(kind)[0]
    check_has_draft(name, draft is not None)
    if draft is None or kind.can(METHODS[name].needs):
        return name
    if DraftKind.EAGLE3 in (kind, METHODS[name].needs):
        what = "is an EAGLE-3 draft" if kind is DraftKind.EAGLE3 else "is no EAGLE-3 draft"
        raise Pard2Error(f"`method` {name}: draft {draft.name!r} {what}; use `method` {methods_for(kind)[0]}, or another draft with `draft`")
    lacks, able = ("mask token (`pard_token`)", kind) if kind < DraftKind.MASKED else ("projection", DraftKind.LAYERED)
    raise Pard2Error(f"`method` {name}: draft {draft.name!r} has no {lacks}; use `method` {methods_for(able)[0]}, or another draft with `draft`")


def make_drafter(options: "EngineOptions", target: "Target", draft: "AnyDraft | None", positions: int) -> "Drafter":
    """The drafter of the method that `fitted` settled, with a match before it where that is asked for."""
    assert options.method is not None, "fitted settles the method"
    drafter = METHODS[options.method].new_drafter(target, draft, positions, options)
    if options.ngram_first is None:
        return drafter
    from pard2.engine.drafters.ngram_first import NgramFirst

    return NgramFirst(
        drafter,
        first=options.ngram_first,
        shortest=options.shortest_match,
        cap=options.ngram_cap,
        most=options.most_copied,
        device=target.device,
    )
