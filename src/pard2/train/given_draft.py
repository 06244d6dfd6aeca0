"""The draft that `draft.path` names, whatever its kind."""

from collections.abc import Mapping
from typing import Any

import torch

from pard2.checkpoints.meta import meta_draft
from pard2.checkpoints.read import load_draft
from pard2.config import DraftConfig
from pard2.errors import Pard2Error
from pard2.models.any_draft import AnyDraft
from pard2.models.target import Target


def read_given(path: str, target: Target) -> AnyDraft:
    """In float32; without weights for a target without weights. Raises `Pard2Error` as `load_draft` does."""
    if target.device.type == "meta":
        return meta_draft(path, target)
    return load_draft(path, target, torch.float32, weight_format="plain")


def check_held(wanted: DraftConfig, held: Mapping[str, Any], way_out: str) -> None:
    """Raises `Pard2Error` if a run asks for what the draft of its `draft.path` was not made with.

    held: fields of `DraftConfig` that the draft decides, with its values.
    way_out: what else can be done than to leave the field out.
    """
    for field in held.keys() & wanted.model_fields_set:
        asked = getattr(wanted, field)
        if asked is not None and asked != held[field]:
            raise Pard2Error(f"draft.path {wanted.path!r} has draft.{field} = {held[field]}; leave that field out, or {way_out}")
