"""Result files: written whole after every chunk, and read back by a run that goes on."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pard2.bench.measurement import Measurement
from pard2.bench.plan import Chunk, Plan
from pard2.bench.read_results import BenchResults
from pard2.bench.summary import Result, summarise
from pard2.environment import meta
from pard2.errors import Pard2Error
from pard2.files import check_output, write_whole
from pard2.reading import parse_json

_IN_WORDS = {"draft_identity": "draft of that name"}


class ResultFile:
    """The measurements of a plan, kept in a file: `meta`, `plan`, `results`, and `chunks`, from which results
    are made.

    path: of the file; None keeps nothing. A file of the same plan is continued.
    replace: a file of another plan or machine is replaced, as soon as the first chunk is measured.

    Raises `Pard2Error` for a file of another plan or machine without `replace`, for a file that is something
    else, and for a place that cannot be written.
    """

    def __init__(self, path: Path | None, plan: Plan, replace: bool = False) -> None:
        self.path = path
        self.plan = plan
        self.measurements: list[Measurement] = []
        self._about = meta()
        if path is None:
            return
        if path.exists():
            self._read(path, replace)
        try:
            check_output(path)  # a place that cannot be written is found before the long run
        except Pard2Error as error:
            raise Pard2Error(f"`path`: {error}") from None

    @property
    def results(self) -> list[Result]:
        """What is known so far."""
        return summarise([suite.name for suite in self.plan.suites], self.plan.configurations, self.measurements)

    @property
    def done(self) -> set[Chunk]:
        return {measurement.chunk for measurement in self.measurements}

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Take in a whole chunk, by every configuration of its batch size."""
        self.measurements += measurements
        if self.path is not None:
            chunks = [measurement.as_dict() for measurement in self.measurements]
            write_result(self.path, self._about, self.results, plan=self.plan.as_dict(), chunks=chunks)

    def read(self) -> BenchResults:
        """What `read_results` would read."""
        plan = json.loads(json.dumps(self.plan.as_dict()))
        name = "this run" if self.path is None else self.path.name
        return BenchResults(name=name, meta=self._about, plan=plan, measurements=self.measurements, results=self.results)

    def _read(self, path: Path, replace: bool) -> None:
        held: Any = None
        try:
            held = parse_json(path.read_bytes())
            about, plan = held["meta"], held["plan"]
            measurements = [Measurement.from_dict(values) for values in held["chunks"]]
            machine, resumed = {key: about[key] for key in ("versions", "hardware")}, about.get("resumed", [])
            if not isinstance(plan, dict) or not isinstance(resumed, list):
                raise TypeError
        except OSError as error:
            raise Pard2Error(f"`path`: cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            if replace and isinstance(held, dict) and held.keys() >= {"meta", "plan", "chunks"}:
                return  # a damaged one of ours
            raise Pard2Error(f"`path`: {path} exists and is no result of `pard2 bench`; name another file") from None
        if replace:
            return
        if "draft_identity" not in plan:  # older files do not say it, and nobody can say it for them
            self.plan = dataclasses.replace(self.plan, draft_identity=None)
        ours = {key: self._about[key] for key in machine}
        changed = _first_difference(plan, self.plan.as_dict()) or _first_difference(machine, ours)
        if changed is not None:
            raise Pard2Error(
                f"`path`: {path} holds a run with another {_IN_WORDS.get(changed, changed)}; name another file, or replace it with `force`"
            )
        whole = {(chunk, one) for chunk in {each.chunk for each in measurements} for one in self.plan.at(chunk.batch_size)}
        found = [(each.chunk, each.configuration) for each in measurements if len(each.answers) == each.chunk.count]
        if len(found) != len(measurements) or len(found) != len(whole) or set(found) != whole:
            raise Pard2Error(f"`path`: {path} holds a chunk twice or in part; name another file, or replace it with `force`")
        if measurements:
            again = {key: self._about[key] for key in ("argv", "commit", "date")}
            self._about = about | {"resumed": [*resumed, again]}
            self.measurements = measurements


def _first_difference(held: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """The first key whose value is not ours. Through JSON, where a tuple is a list."""
    return next((key for key in {**held, **ours} if json.loads(json.dumps(ours.get(key))) != held.get(key)), None)


def write_result(path: Path, about: dict[str, Any], results: list[dict[str, Any]], **more: Any) -> None:
    """Write `{"meta": .., "results": [..], ..}` beside `path` and rename it, a line for each item of a list.

    about: `meta()` as it was when the run began
    more: further keys

    Raises `Pard2Error` where the place cannot be written; what was there is kept.
    """
    values = {"meta": about, "results": results, **more}
    text = ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in values.items())
    write_whole(path, f"{{\n{text}\n}}\n".encode())


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value, indent=1)
    return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
