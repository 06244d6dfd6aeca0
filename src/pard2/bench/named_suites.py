"""Suites known by name: read from where they are published, or, without a network, prompts of our own."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pard2.cache_directory import cache_directory
from pard2.checkpoints import hub
from pard2.checkpoints.hub import UnreachableError
from pard2.data.records import Record, read_records
from pard2.data.sources import open_source
from pard2.errors import Pard2Error, Pard2Warning, first_line
from pard2.files import write_whole

_OWN = Path(__file__).parent.parent / "assets" / "suites"
_FUNCTION = "Complete the following Python function.\n\n```python\n{}\n```"


@dataclass(frozen=True)
class NamedSuite:
    """Where the rows of a suite are, and what is asked of each.

    origin: a data set of the hub, or the address of a file
    file: of the data set; empty for an address
    ask: the user's turns, of a row
    own: our own files that stand in for it
    """

    origin: str
    file: str
    ask: Callable[[dict[str, Any]], list[str]]
    own: tuple[str, ...]


NAMED_SUITES = {
    "gsm8k": NamedSuite("openai/gsm8k", "main/test-00000-of-00001.parquet", lambda row: [row["question"]], ("arithmetic",)),
    "humaneval": NamedSuite(
        "openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet", lambda row: [_FUNCTION.format(row["prompt"].strip())], ("code",)
    ),
    "math500": NamedSuite("HuggingFaceH4/MATH-500", "test.jsonl", lambda row: [row["problem"]], ("mathematics",)),
    "mt_bench": NamedSuite("HuggingFaceH4/mt_bench_prompts", "raw/question.jsonl", lambda row: row["prompt"], ("dialogue",)),
    "spec_bench": NamedSuite(
        "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl",
        "",
        lambda row: row["turns"],
        ("arithmetic", "code", "mathematics", "dialogue"),
    ),
}


def read_named(name: str) -> tuple[str, list[Record], str]:
    """What results call the suite, its records, and where they are from.

    Without a network, and without a copy of an earlier time, these are prompts of our own under a name of
    their own, and a warning says so. A question in several turns has all of them in `turns`.

    Raises `Pard2Error` for a refusal, and for rows of another form than expected.
    """
    suite = NAMED_SUITES[name]
    try:
        file, source = _published(suite, name)
    except UnreachableError:
        records = own_records(suite.own)
        number = "ten" if len(records) == 10 else len(records)
        warnings.warn(f"no network: {number} prompts of our own in place of {name}", Pard2Warning, stacklevel=2)
        return f"own-{suite.own[0] if len(suite.own) == 1 else 'mixed'}", records, f"written for pard2, in place of {name}"
    try:
        asked = [suite.ask(row) for _, row in open_source(file).rows()]
        return (
            name,
            [{"id": f"{name}-{i}", "messages": [{"role": "user", "content": turns[0]}], "turns": turns} for i, turns in enumerate(asked)],
            source,
        )
    except (LookupError, TypeError, AttributeError):
        raise _refused(name, f"{source} holds rows of another form than expected") from None


def own_records(kinds: Iterable[str] = ("arithmetic", "code", "mathematics", "dialogue")) -> list[Record]:
    """Our own prompts of these kinds, taking turns, so that the first few are mixed, too."""
    files = [read_records(_OWN / f"{kind}.jsonl") for kind in kinds]
    return [record for one_of_each in zip(*files, strict=True) for record in one_of_each]


def _published(suite: NamedSuite, name: str) -> tuple[Path, str]:
    """A file of the rows, kept for the next time, and which one it is.

    Raises `UnreachableError` where there is no copy of an earlier time and no network.
    """
    import urllib.error

    if suite.file:
        try:
            directory = _from_hub(suite.origin, suite.file)
        except UnreachableError:
            raise
        except Pard2Error as error:
            raise _refused(name, str(error)) from None
        return directory / suite.file, f"{suite.origin} {hub.commit_of(directory)}/{suite.file}"
    kept = cache_directory() / "suites" / f"{name}.jsonl"
    if not kept.exists():
        try:
            rows = _download(suite.origin)
        except urllib.error.HTTPError as error:
            raise _refused(name, f"{suite.origin} answers {error.code}") from None
        write_whole(kept, rows)
    return kept, suite.origin


def _from_hub(repository: str, file: str) -> Path:
    """The directory of a data set that has this file."""
    import urllib.error

    import huggingface_hub

    with suppress(UnreachableError), hub.accessing(None, local_files_only=True):
        kept = hub.download(repository, [file], data_set=True)
        if (kept / file).is_file():
            return kept
    with suppress(urllib.error.HTTPError):  # whatever it answers, it is there
        _download(huggingface_hub.constants.ENDPOINT)  # the hub's library would try for half a minute to reach it
    return hub.download(repository, [file], data_set=True)


def _download(address: str) -> bytes:
    """Raises `UnreachableError` without a network, and urllib's `HTTPError` for what is refused."""
    import urllib.error
    import urllib.request

    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UnreachableError("HF_HUB_OFFLINE")
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read()
    except urllib.error.HTTPError:
        raise
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        raise UnreachableError(f"cannot reach {address}: {first_line(error)}") from None


def _refused(name: str, why: str) -> Pard2Error:
    return Pard2Error(f"`suites` {name}: {why}; the path of a JSONL file works in its place")
