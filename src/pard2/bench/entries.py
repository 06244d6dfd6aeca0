"""Results of one or of several files, side by side: each has a name that tells it from the others."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pard2.bench.plan import Configuration
from pard2.bench.read_results import BenchResults, read_results
from pard2.bench.summary import Result
from pard2.engine.methods import METHODS, PLAIN
from pard2.errors import Pard2Error
from pard2.reading import printable

# Of a plan: what two runs may have chosen differently without measuring other configurations.
_CHOICES = ("target", "dtype", "device", "weights", "max_new_tokens", "ignore_eos", "seed", "repeats", "ngrams", "tree_top_k", "cuda_graphs")

# What is said of how a file was measured.
_META = {"argv", "versions", "hardware", "date"}
_PLAN = {"target", "draft", "dtype", "device", "max_new_tokens", "repeats"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A result in a report.

    way: to decode, as in "PARD-2 TD of old, tree 32"; with its file, where other files have it, too
    name: that, with K where several were measured
    result: as `summarise` makes it; with `file`, and `draft` if anybody has one, of several files
    proposed_at: how many cycles proposed a token at position 1, 2, ..
    """

    way: str
    name: str
    result: Result
    proposed_at: tuple[int, ...]

    @property
    def plain(self) -> bool:
        return self.result["method"] == PLAIN

    @property
    def suite(self) -> str:
        return printable(self.result["suite"])

    @property
    def batch_size(self) -> int:
        return self.result["batch_size"]

    @property
    def temperature(self) -> float:
        return self.result["temperature"]


def read_files(paths: Sequence[Path]) -> list[BenchResults]:
    """Result files whose figures mean something beside each other.

    Raises `Pard2Error` as `read_apart` does, and for files that have other prompts under one suite's name.
    """
    files = read_apart(paths)
    for suite, holders in other_prompts(files).items():
        raise Pard2Error(f"{holders[1]} has other prompts under the name of suite {suite!r} than {holders[0]}; make a report of each alone")
    return files


def read_apart(paths: Sequence[Path]) -> list[BenchResults]:
    """Result files, by names of which no two are equal.

    Raises `Pard2Error` for a file that cannot be read, does not say how it was measured, or is given twice.
    """
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise Pard2Error(f"{path} is named twice; name each file once")
    files = [read_results(path) for path in paths]
    for path, file in zip(paths, files, strict=True):
        parts = (file.meta, *file.meta.get("resumed", []))
        if not (file.meta.keys() >= _META and file.plan.keys() >= _PLAN and all(part.keys() >= {"argv", "date"} for part in parts)):
            raise Pard2Error(f"{path} is of another version of `pard2 bench`, or damaged; measure again")
    if len({file.name for file in files}) < len(files):
        return [replace(file, name=str(path)) for file, path in zip(files, paths, strict=True)]
    return files


def other_prompts(files: Sequence[BenchResults]) -> dict[str, tuple[str, str]]:
    """Suites that are not the same prompts everywhere: two files that differ, by the suite's name."""
    found: dict[str, tuple[str, str]] = {}
    first: dict[str, BenchResults] = {}
    for file in files:
        for suite, digest in file.digests.items():
            holder = first.setdefault(suite, file)
            if holder.digests[suite] != digest:
                found.setdefault(suite, (holder.name, file.name))
    return found


def entries(files: Sequence[BenchResults]) -> list[Entry]:
    """All results: suite by suite, and there by batch size and temperature; a way of several files side by
    side.
    """
    results = [(file, result) for file in files for result in file.results]
    several_ks = len({result["draft_tokens"] for _, result in results if result["method"] != PLAIN}) > 1
    drafts = any("draft" in result for _, result in results)
    holders: dict[str, set[str]] = {}
    for file, result in results:
        holders.setdefault(way(result), set()).add(file.name)
    suites, ways = list(dict.fromkeys(result["suite"] for _, result in results)), list(holders)
    proposed = {file.name: _proposed_at(file) for file in files}

    def order(held: tuple[BenchResults, Result]) -> tuple[int, int, float, int]:
        result = held[1]
        return suites.index(result["suite"]), result["batch_size"], result["temperature"], ways.index(way(result))

    found = []
    for file, result in sorted(results, key=order):
        text = way(result)
        where = f" ({printable(file.name)})" if len(holders[text]) > 1 else ""
        k = f", K {result['draft_tokens']}" if several_ks and result["method"] != PLAIN else ""
        told = {"file": file.name} | ({"draft": result.get("draft")} if drafts else {}) if len(files) > 1 else {}
        counts = proposed[file.name][result["suite"], _configuration(result)]
        found.append(Entry(way=text + where, name=text + k + where, result=told | result, proposed_at=counts))
    return found


def _proposed_at(file: BenchResults) -> dict[tuple[str, Configuration], tuple[int, ...]]:
    """By suite and configuration: how many cycles proposed a token at each position."""
    found: dict[tuple[str, Configuration], list[tuple[int, ...]]] = {}
    for one in file.measurements:
        found.setdefault((one.chunk.suite, one.configuration), []).append(one.proposed_at)
    return {key: tuple(map(sum, zip_longest(*counts, fillvalue=0))) for key, counts in found.items()}


def _configuration(result: Result) -> Configuration:
    return Configuration(**{field.name: result[field.name] for field in fields(Configuration) if field.name in result})


def way(configuration: Mapping[str, Any]) -> str:
    """What people call a way to decode: method, draft, tree. Of a result, or of a configuration's values."""
    method, draft, tree = configuration["method"], configuration.get("draft"), configuration.get("tree")
    title = METHODS[method].title if method in METHODS else method
    return printable(title + (f" of {draft}" if draft else "") + (f", tree {tree}" if tree else ""))


def machine(file: BenchResults) -> str:
    hardware = file.meta["hardware"]
    gpu = f", {hardware['gpu']}" if hardware.get("gpu") else ""
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores, {hardware.get('threads')} threads{gpu}"


def versions(file: BenchResults) -> str:
    return ", ".join(f"{name} {version}" for name, version in file.meta["versions"].items())


def commands_of(file: BenchResults) -> list[str]:
    """The command that began a run, and those that went on with it where they were other ones."""
    return list(dict.fromkeys(shlex.join(map(str, one["argv"])) for one in (file.meta, *file.meta.get("resumed", []))))


def differences(files: Sequence[BenchResults]) -> list[str]:
    """What the files do not have in common beside their configurations, a line each."""
    said = {"machine": [machine(file) for file in files], "versions": [versions(file) for file in files]}
    said |= {choice: [str(file.plan[choice]) for file in files] for choice in _CHOICES if all(choice in file.plan for file in files)}
    return [
        f"not the same {what}: " + "; ".join(f"{value} ({file.name})" for value, file in zip(values, files, strict=True))
        for what, values in said.items()
        if len(set(values)) > 1
    ]


def unfinished(file: BenchResults) -> str:
    """What of its plan a run has not measured yet; empty where it is whole."""
    done = {suite: min(r["prompts"] for r in file.results if r["suite"] == suite) for suite in {r["suite"] for r in file.results}}
    parts = [
        f"{done.get(s['name'], 0)} of {s['prompts']} prompts of {s['name']}" for s in file.plan["suites"] if done.get(s["name"], 0) < s["prompts"]
    ]
    return f"{file.name} was stopped before its end: {', '.join(parts)}" if parts else ""
