"""Times of passes on another machine, or of another target, from a file (docs/predict.md)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pard2.bench.predict.counts import Way
from pard2.bench.predict.cycle_times import CycleTimes
from pard2.bench.predict.time_curve import Passes, TimeCurve
from pard2.engine.methods import PLAIN
from pard2.errors import Pard2Error
from pard2.reading import read_json

_Positive = Annotated[float, Gt(0)]
_FORM = 'write {"target": {"rows": [1, 9], "ms": [7.4, 7.6]}, "draft": {"rows": [8], "ms": [2.7]}, "other_ms": 0.4}'
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """rows, ms: of passes. sequences: that take part in each; one where nothing is said"""

    rows: list[_Positive]
    ms: list[_Positive]
    sequences: list[_Positive] | None = None
    __pydantic_config__ = _STRICT

    def curve(self, name: str) -> TimeCurve:
        """Raises `ValueError` for lists of different lengths, or empty ones."""
        many = [1.0] * len(self.rows) if self.sequences is None else self.sequences
        if not self.rows or not len(self.rows) == len(self.ms) == len(many):
            raise ValueError(f"{name}: lists of one length, and not empty, are needed")
        return TimeCurve([Passes(rows, sequences, ms / 1000) for rows, sequences, ms in zip(self.rows, many, self.ms, strict=True)])


@dataclass(frozen=True, kw_only=True)
class _Times:
    """The file.

    other_ms: of a cycle outside the models: a number, or a table whose rows are sequences
    plain_other_ms: the same of plain decoding, where it differs
    name, source: words
    """

    target: _Table
    draft: _Table
    other_ms: _Table | Annotated[float, Gt(0)] | None = None
    plain_other_ms: _Table | Annotated[float, Gt(0)] | None = None
    name: str = ""
    source: str = ""
    __pydantic_config__ = _STRICT


def read_times(path: Path) -> CycleTimes:
    """Read a file of times: of the form that docs/predict.md describes, or what `benchmarks/gpu.py` wrote.

    Raises `Pard2Error` for a file that cannot be read, and for one of another form.
    """
    held = read_json(path)
    try:
        if isinstance(held, dict) and "parts" in held and "results" in held:
            held = _of_gpu(held)
        times = TypeAdapter(_Times).validate_json(json.dumps(held))  # strict, and a dictionary is read as the record that it was
        others: dict[Way | None, TimeCurve] = {}
        for way, table in ((None, times.other_ms), (Way(None, PLAIN), times.plain_other_ms)):
            if table is not None:
                one = table if isinstance(table, _Table) else _Table(rows=[1.0], ms=[table])
                others[way] = one.curve("other_ms" if way is None else "plain_other_ms")
        return CycleTimes(name=times.name or path.name, target=times.target.curve("target"), drafts={None: times.draft.curve("draft")}, others=others)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise Pard2Error(f"{path} is no file of times: {where}: {first['msg'].lower()}; {_FORM}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Pard2Error(f"{path} is no file of times: {error}; {_FORM}") from None


def _of_gpu(held: dict[str, Any]) -> dict[str, Any]:
    """The table of cycles of `benchmarks/gpu.py`, with captured graphs where both ways were measured.

    Its models are random, so hardly anything is accepted, and the draft reads one token more in each cycle: a
    pass of K rows for each sequence.
    """
    cycles = [row for row in held["results"] if row.get("part") == "cycles" and "arm" in row]
    arms = [row for row in cycles if row["arm"] == "graphs"] or cycles
    if not any(row["draft_tokens"] for row in arms):
        raise ValueError("it holds no cycles with a draft")
    made: dict[str, Any] = {key: {"rows": [], "sequences": [], "ms": []} for key in ("target", "draft", "other_ms", "plain_other_ms")}

    def add(key: str, rows: int, sequences: int, ms: float) -> None:
        for name, value in (("rows", rows), ("sequences", sequences), ("ms", ms)):
            made[key][name].append(float(value))

    for row in arms:
        many, k = row["batch_size"], row["draft_tokens"]
        add("target", many * (1 + k), many, row["verify_milliseconds"])
        if k:
            add("draft", many * k, many, row["draft_milliseconds"])
            add("other_ms", many, 1, row["other_milliseconds"])
        else:
            add("plain_other_ms", many, 1, row["draft_milliseconds"] + row["other_milliseconds"])
    return {key: table for key, table in made.items() if table["rows"]}
