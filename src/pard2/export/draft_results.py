"""Which of a file's results are a draft's own."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pard2.bench.read_results import BenchResults
from pard2.bench.summary import Result
from pard2.engine.methods import METHODS, PLAIN
from pard2.errors import Pard2Error
from pard2.models.draft_kind import DraftKind

_MEASURE = "measure this one: pard2 bench -d {} --json FILE"


@dataclass(frozen=True, kw_only=True)
class DraftResults:
    """What a file says of one draft.

    results: of the methods that it proposed for.
    plain: those of plain decoding in the same run.
    identified: whether the file says that it was this very draft; older ones only name it.
    """

    name: str
    meta: dict[str, Any]
    plan: dict[str, Any]
    results: list[Result]
    plain: list[Result]
    identified: bool

    def plain_of(self, result: Result) -> Result | None:
        """Plain decoding under the same conditions."""
        same = ("suite", "batch_size", "temperature")
        return next((one for one in self.plain if all(one[key] == result[key] for key in same)), None)


def results_of(bench: BenchResults, directory: Path, identity: str, kind: DraftKind) -> DraftResults:
    """The results of the draft in this directory.

    identity: as `draft_identity` says. kind: what the draft can do.

    Raises `Pard2Error` for a file of another draft: one whose weights are others, one that measured a method
    that this draft cannot carry out, or one that does not say which of several it is.
    """
    way_out = _MEASURE.format(directory)
    drafts, said = bench.plan.get("draft"), bench.plan.get("draft_identity")
    if drafts is None:
        raise Pard2Error(f"{bench.name} measured no draft; {way_out}")
    several = isinstance(drafts, dict)
    if not isinstance(drafts, str | dict) or (said is not None and type(said) is not type(drafts)):
        raise Pard2Error(f"{bench.name} is of another version of `pard2 bench`, or damaged; {way_out}")
    name = _name_among(bench, directory, identity) if several else None
    if not several and said is not None and said != identity:
        raise Pard2Error(f"{bench.name} is of another draft ({drafts}), whose weights or config are not those of {directory}; {way_out}")
    known = [one for one in bench.results if one["method"] in METHODS]
    ours = [one for one in known if METHODS[one["method"]].needs and (not several or one["draft"] == name)]
    if not ours:
        raise Pard2Error(f"{bench.name} has no results of this draft yet; {way_out}")
    for one in ours:
        if not kind.can(METHODS[one["method"]].needs):
            raise Pard2Error(f"{bench.name} is of another draft: it measured {one['method']}, which {directory} cannot carry out; {way_out}")
    return DraftResults(
        name=bench.name,
        meta=bench.meta,
        plan=bench.plan,
        results=ours,
        plain=[one for one in known if one["method"] == PLAIN],
        identified=said is not None,
    )


def _name_among(bench: BenchResults, directory: Path, identity: str) -> str:
    """What a run of several drafts calls this one."""
    drafts, said = bench.plan["draft"], bench.plan.get("draft_identity")
    way_out, named = _MEASURE.format(directory), ", ".join(drafts)
    if said is not None:
        found = [name for name in drafts if said.get(name) == identity]
        if not found:
            raise Pard2Error(f"{bench.name} is of other drafts ({named}), of which none has the weights and the config of {directory}; {way_out}")
        return found[0]
    here = os.path.realpath(directory)
    found = [name for name, path in drafts.items() if os.path.realpath(path) == here]
    if not found:
        raise Pard2Error(f"{bench.name} does not say which of its drafts ({named}) {directory} is; {way_out}")
    return found[0]
