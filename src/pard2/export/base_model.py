"""The target that a draft belongs to, as the hub knows it: id and licence, as far as this disk tells."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from pard2.checkpoints import hub
from pard2.checkpoints.embedded import EMBEDDED, EMBEDDED_ID, EMBEDDED_LICENSE
from pard2.errors import Pard2Error
from pard2.reading import printable

CARD = "README.md"
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.MULTILINE | re.DOTALL)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class BaseModel:
    """A target.

    name: what a command calls it.
    hub_id: None where it has none, or nobody knows it.
    license: as the hub names licences; None where it is not known.
    """

    name: str
    hub_id: str | None = None
    license: str | None = None


def base_model(name: str, given: bool) -> BaseModel:
    """What is known of a target without asking a server.

    given: it was named now; else it is what a file says, where a bare word may be anybody's directory.

    Raises `Pard2Error` for a given name that no model can have.
    """
    if name == EMBEDDED:
        return BaseModel(name, EMBEDDED_ID, EMBEDDED_LICENSE)
    if Path(name).exists() and (given or "/" in name):
        return BaseModel(printable(Path(name).resolve().name), None, _license_in(Path(name) / CARD))
    if ("/" in name or given) and _may_be_id(name):
        return BaseModel(name, name.partition("@")[0], _license_on_hub(name))
    if given:
        raise Pard2Error(f"`target` {name!r} is neither a directory nor a hub id; name the model that the draft was made for")
    return BaseModel(printable(Path(name).name))


def checked_license(name: str) -> str:
    """Raises `Pard2Error` for what is no identifier of a licence."""
    if not _LICENSE.fullmatch(name):
        raise Pard2Error(f"`license` {name!r} is no identifier of a licence as the hub writes them; such are apache-2.0, mit, llama3.1, other")
    return name


def _may_be_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name.partition("@")[0])
    except HFValidationError:
        return False
    return hub.is_name(name)


def _license_on_hub(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = name.partition("@")
    found = try_to_load_from_cache(repo, CARD, revision=revision or None)
    return _license_in(Path(found)) if isinstance(found, str) else None


def _license_in(card: Path) -> str | None:
    """What a model's card says; None for a card without it, or none."""
    try:
        found = _FRONT_MATTER.match(card.read_text(encoding="utf-8"))
        values = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    named = values.get("license") if isinstance(values, dict) else None
    return named if isinstance(named, str) and _LICENSE.fullmatch(named) else None
