"""What a benchmark runs: configurations, and the chunks of prompts that they decode in turn.

It runs nothing.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from pard2.bench.suites import Suite
from pard2.engine.methods import METHODS, PLAIN
from pard2.engine.options import TreeNodes

DraftTokens = int | Literal["auto"]

# At the end of a chunk sequences leave one by one, and the last ones decode in a small batch; with several
# batches a chunk that weighs little.
_BATCHES_IN_CHUNK = 4


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A way to decode.

    draft_tokens: as in `EngineOptions`; 0 for `ar`, which proposes nothing
    draft: name of the draft that proposes, where a run has several; None for a method without one
    tree: as in `EngineOptions`; 0 for a method that proposes no trees
    """

    method: str
    batch_size: int
    draft_tokens: DraftTokens
    temperature: float
    draft: str | None = None
    tree: TreeNodes = 0

    @property
    def base(self) -> "Configuration":
        """Plain decoding under the same conditions, which speed is compared with."""
        return Configuration(method=PLAIN, batch_size=self.batch_size, draft_tokens=0, temperature=self.temperature)

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "draft" or value is not None}


@dataclass(frozen=True)
class Chunk:
    """Prompts first .. first + count - 1 of a suite.

    Every configuration of the batch size decodes them before the next chunk begins.
    """

    suite: str
    repeat: int
    batch_size: int
    first: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides what is measured.

    target, draft: as they were named; several drafts by the names that configurations have for them
    dtype, device: names
    max_new_tokens: of an answer
    ignore_eos: answers of exactly max_new_tokens
    repeats: how many times each suite is run
    seed: of the first prompt; the next ones have the next numbers
    tree_top_k, cuda_graphs: as in `EngineOptions`, the first for the trees of an EAGLE-3 draft
    ngrams: further fields of `EngineOptions`; a match before the draft for the methods that have one
    weights: the target's, as `Engine.from_pretrained` takes them
    commits: of the models that come from the hub, by name; None where none does
    draft_identity: which draft that is (`checkpoints.draft_identity`); of several, by the names in `draft`
    """

    target: str
    draft: str | Mapping[str, str] | None
    dtype: str
    device: str
    suites: tuple[Suite, ...]
    configurations: tuple[Configuration, ...]
    max_new_tokens: int
    ignore_eos: bool = False
    repeats: int = 1
    seed: int = 0
    tree_top_k: int | None = None
    ngrams: Mapping[str, int | None] = field(default_factory=dict)
    cuda_graphs: bool | None = None
    weights: str = "auto"
    commits: dict[str, str] | None = None
    draft_identity: str | Mapping[str, str] | None = None

    @property
    def title(self) -> str:
        """What all results have in common that they do not say themselves."""
        draft = f", draft {self.draft}" if isinstance(self.draft, str) else ""
        return f"{self.target}{draft}, {self.dtype} on {self.device}, up to {self.max_new_tokens} tokens"

    @property
    def prompts(self) -> int:
        """Of all suites together."""
        return sum(len(suite.prompts) for suite in self.suites)

    @property
    def most_tokens(self) -> int:
        """New tokens of all configurations, if no answer ends early."""
        return self.prompts * self.repeats * len(self.configurations) * self.max_new_tokens

    def at(self, batch_size: int) -> list[Configuration]:
        return [configuration for configuration in self.configurations if configuration.batch_size == batch_size]

    def chunks(self) -> Iterator[Chunk]:
        """The work in its order.

        Batch sizes take turns, too: each has its own chunks, and all get through a suite side by side.
        """
        for suite in self.suites:
            for repeat in range(self.repeats):
                pieces = [
                    Chunk(suite.name, repeat, size, first, count)
                    for size in dict.fromkeys(configuration.batch_size for configuration in self.configurations)
                    for first, count in _cut(len(suite.prompts), 1 if size == 1 else _BATCHES_IN_CHUNK * size)
                ]
                yield from sorted(pieces, key=lambda piece: (piece.first + piece.count, piece.batch_size))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, by which the same plan is known again."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {
            "suites": [suite.as_dict() for suite in self.suites],
            "configurations": [configuration.as_dict() for configuration in self.configurations],
        }


def configurations(
    methods: Sequence[str] | Mapping[str | None, Sequence[str]],
    batch_sizes: Sequence[int],
    draft_tokens: Sequence[DraftTokens],
    temperatures: Sequence[float],
    trees: Sequence[TreeNodes] = (0,),
) -> tuple[Configuration, ...]:
    """Every combination once, with `ar` as the base of each batch size and temperature.

    methods: those of each draft, by its name, where there are several
    trees: for the methods that propose them; the others run once
    """
    by_draft: Mapping[str | None, Sequence[str]] = methods if isinstance(methods, Mapping) else {None: methods}
    found = []
    for size in batch_sizes:
        for temperature in temperatures:
            base = Configuration(method=PLAIN, batch_size=size, draft_tokens=0, temperature=temperature)
            found.append(base)
            for draft, names in by_draft.items():
                for name in names:
                    method = METHODS[name]
                    shapes = trees if method.trees else (0,)
                    way = dataclasses.replace(base, method=name, draft=draft if method.needs else None)
                    if method.proposes:
                        found += [dataclasses.replace(way, draft_tokens=k, tree=nodes) for k in draft_tokens for nodes in shapes]
    return tuple(dict.fromkeys(found))


def _cut(length: int, size: int) -> list[tuple[int, int]]:
    """(first, count) of even pieces of at least `size`, or of one piece where there is less."""
    number = max(1, length // size)
    bounds = [length * i // number for i in range(number + 1)]
    return [(first, end - first) for first, end in pairwise(bounds)]
