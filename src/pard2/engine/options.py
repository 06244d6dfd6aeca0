"""What an engine is asked for when it is made, checked in one place.

It knows no model, and imports no torch.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pard2.engine.methods import EAGLE3, METHODS, NGRAM, PLAIN, check_has_draft, choose_method, find_method
from pard2.engine.settings import check, flag, is_whole
from pard2.errors import Pard2Error
from pard2.models.draft_kind import DraftKind

if TYPE_CHECKING:
    from pard2.models.any_draft import AnyDraft
    from pard2.models.eagle3 import Eagle3Draft

DraftTokens = int | Literal["auto", "full"]
DraftSampling = Literal["greedy", "sampled"]
VerificationRule = Literal["token", "block"]
TreeNodes = int | Literal["auto"]

_MOST = 2**53  # sequences or cache places, of which no machine holds so many
# An ordinary LM was trained for no number of proposals; each costs a pass, so
# "auto" and "full" go no further.
_MOST_ONE_BY_ONE = 8
_MOST_COPIED = 16  # tokens of a match's continuation; each is a row of the target's pass
_TREE_TOP_K, _WIDEST_TREE = 10, 64
_LONGEST_MATCH = 32  # each length below costs an entry of the index for each token of the text
NGRAM_OPTIONS = ("ngram_min", "ngram_max", "ngram_first", "ngram_cap")
_TREE_METHODS = [name for name, method in METHODS.items() if method.trees]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine decodes, whatever it is asked later.

    method: a name of `METHODS`; None for the best that the draft allows.
    draft_tokens: proposals of a sequence in a cycle; "full", as many as the draft was trained for, which an
        EAGLE-3 draft's may exceed; "auto", adapted to what past cycles accepted and cost, for each sequence,
        from prompt to prompt.
    draft_sampling: what a draft proposes where a request samples: "greedy", its most probable tokens, so
        that the text depends on the seed alone; or "sampled", tokens drawn from its distribution.
    verification: how drawn proposals are judged: "token", one by one, or "block".
    tree: nodes of the tree that a sequence proposes in a cycle; 0 for chains; "auto", as many as pay.
    tree_top_k: of an EAGLE-3 draft's tree: nodes of a depth that it looks beyond, and tokens tried behind
        each; None for 10. How deep it grows, `draft_tokens` says.
    ngram_min: tokens of the shortest match that is continued; None for 2, and for 4 with `ngram_first`.
    ngram_max: tokens of the longest match that the method ngram looks for.
    ngram_first: a match before the draft: one of so many tokens is continued, and the draft is not asked; a
        shorter one, by at most `ngram_cap` tokens; None for never.
    max_batch: sequences decoded at once; others wait.
    cache_tokens: places of the cache, for all sequences together; None for as many as there is memory for.
    cuda_graphs: replay captured passes: True, or raise; False, never; None, where there is CUDA and the
        architecture can be captured.

    Raises `Pard2Error` for what means nothing, alone or together, by the field's name.
    """

    method: str | None = field(
        default=None, metadata=flag(f"{', '.join(METHODS)}; by default the best that the draft allows.", "-m", "--method", metavar="METHOD")
    )
    draft_tokens: DraftTokens = field(
        default="auto",
        metadata=flag(
            "Tokens proposed in a cycle: a number; full, as many as the draft was trained for; auto adapts to what is accepted and what it costs.",
            "--draft-tokens",
            metavar="K|full|auto",
        ),
    )
    draft_sampling: DraftSampling = field(
        default="greedy",
        metadata=flag("What a draft proposes above temperature 0: its first choices, or drawn tokens.", "--draft-sampling", metavar="greedy|sampled"),
    )
    verification: VerificationRule = field(
        default="token",
        metadata=flag("How drawn proposals are judged: one by one, or as whole blocks, which accepts more.", "--verification", metavar="token|block"),
    )
    tree: TreeNodes = field(
        default=0,
        metadata=flag(
            f"Nodes of the tree that is proposed in a cycle, for {', '.join(_TREE_METHODS)}; 0 proposes chains.", "--tree", metavar="N|auto"
        ),
    )
    tree_top_k: int | None = field(
        default=None,
        metadata=flag(f"Tokens tried behind each node of a tree of {EAGLE3}; by default 10.", "--tree-top-k", metavar="N"),
    )
    ngram_min: int | None = field(
        default=None,
        metadata=flag("Tokens of the shortest match that is continued; by default 2, and 4 with --ngram-first.", "--ngram-min", metavar="N"),
    )
    ngram_max: int = field(default=8, metadata=flag(f"Tokens of the longest match that -m {NGRAM} looks for.", "--ngram-max", metavar="N"))
    ngram_first: int | None = field(
        default=None,
        metadata=flag("Before the draft: where the last N tokens stood before, such as 8, copy what followed.", "--ngram-first", metavar="N"),
    )
    ngram_cap: int = field(
        default=8, metadata=flag("Most tokens that --ngram-first copies after a match of fewer than its N tokens.", "--ngram-cap", metavar="N")
    )
    max_batch: int = field(default=16, metadata=flag("Answers decoded at once.", "--batch-size", metavar="N"))
    cache_tokens: int | None = field(
        default=None,
        metadata=flag("Positions of the key-value cache, of all sequences together; by default what fits.", "--cache-tokens", metavar="N"),
    )
    cuda_graphs: bool | None = field(
        default=None,
        metadata=flag("Replay captured passes on a GPU; by default where it is CUDA and the architecture allows.", "--cuda-graphs/--no-cuda-graphs"),
    )

    def __post_init__(self) -> None:
        check("max_batch", self.max_batch, is_whole(self.max_batch, 1, _MOST), "give a whole number; at least 1 is needed")
        fits = self.cache_tokens is None or is_whole(self.cache_tokens, 2, _MOST)
        check("cache_tokens", self.cache_tokens, fits, "give a whole number; at least a prompt and an answer must fit")
        check("cuda_graphs", self.cuda_graphs, self.cuda_graphs in (True, False, None), "give True, False, or None for where it is possible")
        if self.draft_sampling not in ("greedy", "sampled"):
            raise Pard2Error(f"`draft_sampling` {self.draft_sampling!r} is neither greedy nor sampled")
        if self.verification not in ("token", "block"):
            raise Pard2Error(f"`verification` {self.verification!r} is neither token nor block")
        if self.verification == "block" and self.draft_sampling == "greedy":
            raise Pard2Error("`verification` block gains nothing with greedy proposals; add `draft_sampling` sampled")
        if self.method is not None:
            find_method(self.method)
        self._check_draft_tokens()
        self._check_tree()
        self._check_ngrams()

    def _check_draft_tokens(self) -> None:
        asked: Any = self.draft_tokens
        if asked in ("auto", "full"):
            return
        if not isinstance(asked, int) or isinstance(asked, bool):
            raise Pard2Error(f"`draft_tokens` {asked!r} is neither a number nor 'auto' or 'full'")
        if asked < 1:
            raise Pard2Error(f"`draft_tokens` {asked}: at least 1 is needed; for no draft at all use `method` {PLAIN}")

    def _check_tree(self) -> None:
        if self.tree != "auto":
            check("tree", repr(self.tree), is_whole(self.tree, 0, _MOST), "give a number of nodes, 0 for chains, or 'auto'")
        fits = self.tree_top_k is None or is_whole(self.tree_top_k, 1, _WIDEST_TREE)
        check("tree_top_k", repr(self.tree_top_k), fits, f"give a number of tokens from 1 to {_WIDEST_TREE}")
        if self.tree_top_k is not None and (self.tree == 0 or self.method not in (EAGLE3, None)):
            way = "add `tree`" if self.method in (EAGLE3, None) else "use it"
            raise Pard2Error(f"`tree_top_k` {self.tree_top_k} is for the trees of `method` {EAGLE3}; {way}, or leave `tree_top_k` out")
        if self.tree == 0:
            return
        if self.verification != "token" or self.draft_sampling != "greedy":
            raise Pard2Error(
                f"`tree` {self.tree}: the proposals of trees are greedy, and judged one by one; "
                "use `draft_sampling` greedy and `verification` token, or `tree` 0"
            )
        if self.method is not None and not METHODS[self.method].trees:
            raise Pard2Error(f"`tree` {self.tree}: `method` {self.method} proposes no trees; use {', '.join(_TREE_METHODS)}, or `tree` 0")
        if self.cache_tokens is not None:
            self.check_tree_fits(self.cache_tokens)

    def _check_ngrams(self) -> None:
        for name in NGRAM_OPTIONS:
            value = getattr(self, name)
            fits = is_whole(value, 1, _LONGEST_MATCH) or (value is None and name in ("ngram_min", "ngram_first"))
            check(name, repr(value), fits, f"give a number of tokens from 1 to {_LONGEST_MATCH}")
        longest = "ngram_max" if self.ngram_first is None else "ngram_first"
        if self.shortest_match > getattr(self, longest):
            raise Pard2Error(f"`ngram_min` {self.ngram_min} is above `{longest}` {getattr(self, longest)}; give a smaller `ngram_min`")
        if self.ngram_first is not None and self.method is not None and not METHODS[self.method].needs:
            raise Pard2Error(
                f"`ngram_first` {self.ngram_first}: `method` {self.method} has no draft that a match could come before; "
                f"name one with `draft`, or use `method` {NGRAM} without `ngram_first`"
            )

    @property
    def shortest_match(self) -> int:
        """Tokens of the shortest match that is continued."""
        if self.ngram_min is not None:
            return self.ngram_min
        return min(2, self.ngram_max) if self.ngram_first is None else min(4, self.ngram_first)

    @property
    def most_copied(self) -> int:
        """Tokens that a match is continued by, at most."""
        return _MOST_COPIED if isinstance(self.draft_tokens, str) else self.draft_tokens

    def tree_width(self, draft: "Eagle3Draft") -> int:
        """Nodes of a depth that an EAGLE-3 draft's tree is grown beyond.

        Raises `Pard2Error` for more than the draft has tokens.
        """
        if self.tree_top_k is None:
            return min(_TREE_TOP_K, len(draft.token_ids))
        if self.tree_top_k > len(draft.token_ids):
            raise Pard2Error(f"`tree_top_k` {self.tree_top_k}: draft {draft.name!r} can propose {len(draft.token_ids)} tokens; give so many at most")
        return self.tree_top_k

    def check_tree_fits(self, positions: int) -> None:
        """Raises `Pard2Error` for a tree that does not fit such a cache beside the
        token that it grows from."""
        if self.tree != "auto" and self.tree >= positions:
            raise Pard2Error(
                f"a tree of {self.tree} nodes does not fit the cache of {positions} positions; give a smaller `tree` or a larger `cache_tokens`"
            )

    def check_has_draft(self, has_draft: bool) -> None:
        """Raises `Pard2Error` if there is none, and the method, a tree or a match before it needs one."""
        check_has_draft(self.method, has_draft)
        if not has_draft and self.method is None:
            replace(self, method=PLAIN)

    def fitted(self, draft: "AnyDraft | None") -> "EngineOptions":
        """These options with the method settled. Raises `Pard2Error` for what the draft cannot carry out."""
        return replace(self, method=choose_method(self.method, draft))

    def most_draft_tokens(self, draft: "AnyDraft | None") -> int:
        """Most proposals of a sequence in a cycle, for the method that `fitted` settled; 0 for none.

        A draft that guesses one token after the other, EAGLE-3's too, may be asked for more than it was
        trained for: each depth is one more of the same pass. Raises `Pard2Error` for more than a parallel
        draft was trained for.
        """
        assert self.method is not None, "fitted settles the method"
        needs = METHODS[self.method].needs
        if draft is None or not needs:
            return self.most_copied if METHODS[self.method].proposes else 0
        trained = draft.spec.draft_tokens if draft.spec is not None and needs >= DraftKind.MASKED else None
        if isinstance(self.draft_tokens, str):
            return trained or _MOST_ONE_BY_ONE
        if trained is not None and not METHODS[self.method].sequential and self.draft_tokens > trained:
            raise Pard2Error(f"`draft_tokens` {self.draft_tokens}: this draft was trained for {trained} at most")
        return self.draft_tokens
