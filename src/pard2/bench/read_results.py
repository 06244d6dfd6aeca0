"""Reads what `pard2 bench --json` wrote, for whatever is made of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pard2.bench.measurement import Measurement
from pard2.bench.plan import Configuration
from pard2.bench.summary import Result, summarise
from pard2.errors import Pard2Error
from pard2.reading import parse_json


@dataclass(frozen=True, kw_only=True)
class BenchResults:
    """A result file.

    name: of the file
    meta: argv, commit, versions, hardware and date of the run
    plan: what was asked for, in plain values; of its suites name, number of prompts, and digest
    measurements: of each configuration and chunk
    results: what `summarise` makes of them
    """

    name: str
    meta: dict[str, Any]
    plan: dict[str, Any]
    measurements: list[Measurement]
    results: list[Result]

    @property
    def digests(self) -> dict[str, str]:
        """Of each suite's prompts, by its name: tells one choice of prompts from another."""
        return {suite["name"]: suite["digest"] for suite in self.plan["suites"]}


def read_results(path: Path) -> BenchResults:
    """Read a result file; its results are made anew from its measurements.

    Raises `Pard2Error` for a file that cannot be read, is something else, is of a version that wrote another
    form, or holds nothing.
    """
    try:
        held = parse_json(path.read_bytes())
    except OSError as error:
        raise Pard2Error(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise Pard2Error(f"{path} is no JSON: {error}") from None
    if not isinstance(held, dict) or not held.keys() >= {"meta", "plan", "chunks"}:
        raise Pard2Error(f"{path} is no result of `pard2 bench --json`; name one")
    try:
        plan, meta = held["plan"], held["meta"]
        if plan.get("tree"):
            raise ValueError("its trees stand in the plan")
        configurations = TypeAdapter(list[Configuration]).validate_python(plan["configurations"])
        measurements = [Measurement.from_dict(values) for values in held["chunks"]]
        names = [suite["name"] for suite in plan["suites"] if isinstance(suite["digest"], str)]
        results = summarise(names, configurations, measurements)
        made = f"pard2 {meta['versions']['pard2']} of {meta['date']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Pard2Error(f"{path} is of another version of `pard2 bench`, or damaged; measure again") from None
    if not results:
        raise Pard2Error(f"{path}, of {made}, holds no measurements yet; go on with its command")
    return BenchResults(name=path.name, meta=meta, plan=plan, measurements=measurements, results=results)
