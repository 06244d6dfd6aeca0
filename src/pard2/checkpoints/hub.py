"""Models and data sets of the hub: into its cache on this disk, and in one line what stands in the way.

A name is `ID` or `ID@REVISION`, the revision a branch, a tag or a commit. Where files go, and who asks, is
huggingface_hub's business: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT hold. Nothing heavy is
imported before one is asked for.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pard2.errors import Pard2Error, first_line

_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w.-]+(?:/[\w.-]+)*))?")
_LARGE = (".safetensors", ".bin")
_WORTH_A_BAR = 50_000_000  # bytes

# Called with a model's name, the bytes to come and where to; gives what is called with the bytes so far.
Reporter = Callable[[str, int, Path], AbstractContextManager[Callable[[int], None]]]


class UnreachableError(Pard2Error):
    """There is no copy on this disk, and no network to get one by, or none may be used."""


@dataclass(frozen=True)
class _Asked:
    """name: as it was given. repo, revision: its parts."""

    name: str
    repo: str
    revision: str | None
    data_set: bool

    @property
    def kind(self) -> str:
        return "data set" if self.data_set else "model"

    def page(self, endpoint: str) -> str:
        return f"{endpoint}/{'datasets/' * self.data_set}{self.repo}"

    @property
    def command(self) -> str:
        """That downloads it."""
        return f"hf download {self.repo}" + " --repo-type dataset" * self.data_set + (f" --revision {self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Access:
    """token: in place of the user's own. local_files_only: ask no server."""

    token: str | None = None
    local_files_only: bool = False


_access: ContextVar[Access] = ContextVar("access", default=Access())  # noqa: B039  # frozen
_reporter: Reporter | None = None


@contextmanager
def accessing(token: str | None, local_files_only: bool) -> Iterator[None]:
    """The models that are loaded here are asked for so."""
    before = _access.set(Access(token, local_files_only))
    try:
        yield
    finally:
        _access.reset(before)


def access_token() -> str | None:
    """That of `accessing`, or else the user's own."""
    from huggingface_hub import get_token

    return _access.get().token or get_token()


def report_downloads(reporter: Reporter | None) -> None:
    """Whom large downloads are told from now on; nobody, unless it is asked for."""
    global _reporter
    _reporter = reporter


def is_name(name: str) -> bool:
    """Whether a model of the hub could have this name."""
    return _NAME.fullmatch(name) is not None


def with_revision(name: str, revision: str | None) -> str:
    """`ID@REVISION`, or the name as it is."""
    return name if revision is None else f"{name}@{revision}"


def commit_of(directory: Path) -> str | None:
    """The commit of a directory that `download` gave; None for another."""
    return directory.name if directory.parent.name == "snapshots" else None


def download(name: str, patterns: list[str], data_set: bool = False) -> Path:
    """The directory in the hub's cache with the files of these patterns, downloaded where they lack.

    data_set: it is one, and no model.

    Raises `Pard2Error`, whatever the hub, the network or the disk refuses; without a network and a copy its
    kind `UnreachableError`.
    """
    from huggingface_hub import constants, snapshot_download

    found = _NAME.fullmatch(name)
    assert found is not None, "is_name comes first"
    what = _Asked(name, found[1], found[2], data_set)
    asked: dict[str, Any] = {"repo_id": what.repo, "revision": what.revision, "allow_patterns": patterns} | vars(_access.get())
    asked |= {"repo_type": "dataset"} if data_set else {}
    try:
        size = _missing_bytes(asked)
        if _reporter is None or size < _WORTH_A_BAR:
            return Path(snapshot_download(**asked, tqdm_class=_bars(lambda done: None)))
        with _reporter(name, size, Path(constants.HF_HUB_CACHE)) as advance:
            return Path(snapshot_download(**asked, tqdm_class=_bars(advance)))
    except Exception as error:
        raise _refusal(error, what) from None


def _missing_bytes(asked: dict[str, Any]) -> int:
    """How much is yet to be downloaded; 0 where only small files are asked for, or nobody knows."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    if _reporter is None or asked["local_files_only"] or not any(pattern.endswith(_LARGE) for pattern in asked["allow_patterns"]):
        return 0
    try:
        files = snapshot_download(**asked, dry_run=True, tqdm_class=_bars(lambda done: None))
    except (OSError, HTTPError):
        return 0  # the download itself says why
    return sum(file.file_size or 0 for file in files if file.will_download)


def _bars(advance: Callable[[int], None]) -> type:
    """What huggingface_hub takes for its progress bars: they show nothing, and count."""
    from tqdm import tqdm

    counted: list[Any] = []  # bytes received and bytes written have a bar each

    class _Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._done = 0
            if kwargs.get("unit") == "B":
                counted.append(self)
            super().__init__(*args, **(kwargs | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            if self in counted:
                advance(max(bar._done for bar in counted))

    return _Bar


def _refusal(error: BaseException, asked: _Asked) -> Pard2Error:
    """What was refused, and the way out."""
    from huggingface_hub import constants, errors

    name, cache = asked.name, constants.HF_HUB_CACHE
    if isinstance(error, errors.LocalEntryNotFoundError):
        lacking = f"no {asked.kind} {name!r} in {cache}, or not the whole of it, and"
        if _access.get().local_files_only or constants.HF_HUB_OFFLINE:
            why = "`local_files_only`" if _access.get().local_files_only else "HF_HUB_OFFLINE"
            return UnreachableError(f"{lacking} {why} allows no download; where there is a network: {asked.command}")
        if error.__cause__ is not None:
            return _refusal(error.__cause__, asked)
        return UnreachableError(f"{lacking} {constants.ENDPOINT} cannot be reached; where there is a network: {asked.command}")
    if isinstance(error, errors.HfHubHTTPError):
        return Pard2Error(_hub_said(error, asked))
    if isinstance(error, errors.HTTPError):  # of the connection
        why = f"cannot reach {constants.ENDPOINT} for {name!r} ({first_line(error)})"
        return UnreachableError(f"{why}; check the network, HF_ENDPOINT and proxies, and try again")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Pard2Error(f"the disk of {cache} is full; make room for {name!r} there, or let HF_HOME name a directory on another disk")
    if isinstance(error, OSError) and error.errno is not None:
        return Pard2Error(f"cannot write into {cache}: {error.strerror}; let HF_HOME name another directory")
    return Pard2Error(f"cannot download {name!r}: {first_line(error)}")


def _hub_said(error: Any, asked: _Asked) -> str:
    """error: an `HfHubHTTPError`."""
    from huggingface_hub import constants, errors, get_token

    name, page, has_token = asked.name, asked.page(constants.ENDPOINT), bool(_access.get().token or get_token())
    if isinstance(error, errors.GatedRepoError):
        if has_token:
            return f"{name!r} is gated, and your token may not read it: ask for access at {page}, with a token that may read gated {asked.kind}s"
        return f"{name!r} is gated: accept its licence at {page}, then log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "your token may not read it" if has_token else "it is private: log in with `hf auth login`, or set HF_TOKEN"
        return f"no {asked.kind} {name!r} at {constants.ENDPOINT}: there is no such id, or {private}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{asked.repo!r} has no revision {asked.revision!r}; see {page}/commits for its branches, tags and commits"
    status = error.response.status_code
    if status in (401, 403):
        if not has_token:
            return f"{constants.ENDPOINT} gives {name!r} to nobody without a token ({status}): log in with `hf auth login`, or set HF_TOKEN"
        whose = "`token`" if _access.get().token else "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token of `hf auth login`"
        return f"{constants.ENDPOINT} refuses {whose} ({status}); make another at {constants.ENDPOINT}/settings/tokens"
    return f"{constants.ENDPOINT} answered {status} for {name!r}; try again later"
