"""A draft checkpoint written again in the layout of another engine."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from pard2.checkpoints.draft_spec import read_spec
from pard2.checkpoints.eagle3 import Layout, check_eagle3, is_eagle3, load_eagle3, open_eagle3, read_eagle3_keys, save_eagle3
from pard2.checkpoints.foreign import refuse_others
from pard2.checkpoints.loading import config_keys, load_causal_lm, load_config, load_target, load_tokenizer, parse_dtype
from pard2.checkpoints.meta import meta_target
from pard2.checkpoints.read import checkpoint_directory, load_draft
from pard2.checkpoints.write import save_draft
from pard2.errors import Pard2Error
from pard2.models.draft import Draft
from pard2.models.draft_kind import DraftKind
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.identity import identity_of

PARD = "pard"
LAYOUTS = ("eagle3", "speculators", PARD)


def converted(name: str, to: str, target: str | None) -> Draft | Eagle3Draft:
    """The draft of a checkpoint, every number as it is stored there, for `write_converted`.

    name: a directory, hub id or `smollm2`.
    to: one of `LAYOUTS`.
    target: needed where the checkpoint does not say all, or not hold all; else it is only checked.

    Raises `Pard2Error` for a draft that this layout cannot hold, or a target that it does not fit.
    """
    if to not in LAYOUTS:
        raise Pard2Error(f"`to` {to!r} is not one of {', '.join(LAYOUTS)}")
    name = str(checkpoint_directory(name))
    keys = config_keys(name)
    refuse_others(keys, name)
    if is_eagle3(keys) is (to == PARD):
        kind, others = ("an EAGLE-3 draft", "eagle3 or speculators") if is_eagle3(keys) else ("no EAGLE-3 draft", "pard")
        raise Pard2Error(f"{name!r} is {kind}, which `to` {to} cannot hold; it can be {others}")
    return _whole_pard(name, target) if to == PARD else _whole_eagle3(name, target)


def write_converted(draft: Draft | Eagle3Draft, directory: Path, to: str) -> None:
    """Write what `converted` gave; the directory appears whole."""
    if isinstance(draft, Draft):
        save_draft(draft, directory)
    else:
        layout: Layout = "speculators" if to == "speculators" else "eagle3"
        save_eagle3(draft, directory, layout=layout)


def _whole_eagle3(name: str, target: str | None) -> Eagle3Draft:
    keys = read_eagle3_keys(name, config_keys(name))
    layers = keys.layers
    if target is not None:
        shapes = meta_target(target)
        fitting = load_eagle3(name, shapes, torch.float32)
        check_eagle3(fitting, name)
        layers = fitting.spec.target_layers
        if keys.made_for is None:  # its name alone: whether it is that one's features that it knows, nobody has said
            keys = dataclasses.replace(keys, made_for=identity_of(target, []))
    if layers is None:
        raise Pard2Error(f"{name!r} does not say which hidden states it reads, but for the default ones of its target; name that with `target`")
    return open_eagle3(name, keys, layers, nn.Module())


def _whole_pard(name: str, target: str | None) -> Draft:
    config = load_config(name)
    spec = read_spec(config.to_dict(), name)
    if spec is None:
        raise Pard2Error(f"{name!r} is an ordinary language model without a mask token (`pard_token`), which is no PARD draft; train one")
    dtype = parse_dtype("auto", name)
    if target is not None:
        loaded = load_target(target, dtype, "cpu", "plain")
        draft = load_draft(name, loaded, dtype, target_dependent=False, weight_format="plain")
        assert isinstance(draft, Draft)
    elif spec.shared_vocabulary:
        raise Pard2Error(f"{name!r} leaves embedding and head to its target; name that with `target`")
    else:
        draft = Draft(load_causal_lm(name, dtype, torch.device("cpu")), spec, None, load_tokenizer(name), name)
    assert draft.kind >= DraftKind.MASKED
    # Without features nothing is left of what other engines cannot read.
    draft.spec = dataclasses.replace(spec, target_layers=None, target_dim=None, normalise_features=False, mask_feature=False)
    return draft
