"""What a draft's directory holds, said without running it and without its target."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pard2.checkpoints.draft_report import DraftReport
from pard2.checkpoints.draft_spec import inexpressible, read_spec
from pard2.checkpoints.eagle3 import check_eagle3, is_eagle3
from pard2.checkpoints.eagle3_inspection import inspect_eagle3
from pard2.checkpoints.engines import lm_runs_in
from pard2.checkpoints.foreign import refuse_others
from pard2.checkpoints.loading import config_keys, empty_model, load_config, load_errors, load_tokenizer, model_directory
from pard2.checkpoints.meta import meta_target
from pard2.checkpoints.projection_file import MASK_FEATURE, USE_TI, WEIGHT, read_projection_file
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.weight_files import open_weights, wanted_weights
from pard2.errors import Pard2Error
from pard2.models.draft import DraftSpec
from pard2.models.draft_kind import DraftKind
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.identity import NAME_KEY, identity_keys

_REDOWNLOAD = "download it again"
_OF_SPEC = ("mask_token", "draft_tokens", "shared_vocabulary", "vocabulary_size", "normalise_features", "mask_feature")


def inspect_draft(directory: Path) -> DraftReport:
    """Read a checkpoint's config, the headers of its weight files and its projection.

    Raises `Pard2Error` if it is no checkpoint or its weights are corrupt; lesser faults go into `lacks`.
    """
    name = str(directory)
    stored_keys = config_keys(name)
    refuse_others(stored_keys, name)
    if is_eagle3(stored_keys):
        return inspect_eagle3(directory, stored_keys)
    config = load_config(name)
    keys = config.to_dict()
    spec = read_spec(keys, name)
    text = config.get_text_config()
    is_pard2 = keys.get("spd_type") == "pard2" or bool(keys.get("pard2"))
    shared = spec is not None and spec.shared_vocabulary
    with load_errors(name):
        stored = open_weights(directory)
    empty = empty_model(config, name)
    wanted = wanted_weights(empty, shared)
    wrong = [key for key, tensor in wanted.items() if key not in stored or stored[key].shape != tensor.shape]
    lacks = [f"{len(wrong)} of {len(wanted)} weights, or has them in another shape, first {wrong[0]}: {_REDOWNLOAD}"] if wrong else []
    tokenizer = load_tokenizer(name)
    if tokenizer is None and not shared:
        lacks.append("a tokenizer: only the sizes of the vocabularies can be compared with a target's")
    projection: dict[str, torch.Tensor] = {}
    fault = None
    if spec is not None and spec.target_layers is not None:
        projection, fault = _read_projection(directory, spec)
    elif is_pard2:
        fault = f"`pard2_target_layers` in its config.json: add it, or {USE_TI}"
    lacks += [fault] if fault else []
    if spec is not None and "pard2_scale" not in keys and spec.target_layers:
        lacks.append(f"`pard2_scale` in its config.json: {spec.scale} is assumed")
    return DraftReport(
        name=name,
        architecture=type(empty).__name__,
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        parameters=sum(t.numel() for t in [*stored.values(), *projection.values()] if t.is_floating_point()),
        dtype="/".join(sorted({str(tensor.dtype).removeprefix("torch.").replace("float", "f").upper() for tensor in stored.values()})),
        kind=_kind(spec is not None, is_pard2, dependent=bool(projection) and fault is None),
        mask_text=tokenizer.convert_ids_to_tokens(spec.mask_token) if tokenizer and spec else None,
        projection=list(projection[WEIGHT].shape) if WEIGHT in projection else None,
        lacks=lacks,
        runs_in=lm_runs_in(stored_keys, spec, whole=not wrong),
        **_said(spec),
    )


def _read_projection(directory: Path, spec: DraftSpec) -> tuple[dict[str, torch.Tensor], str | None]:
    """The tensors of the projection's file, and what they lack, if anything."""
    try:
        tensors = read_projection_file(directory, str(directory), required=True)
    except Pard2Error as error:
        return {}, str(error)
    missing = [key for key in (WEIGHT, *[MASK_FEATURE] * spec.mask_feature) if key not in tensors]
    return tensors, f"`{missing[0]}` in its projection file: {_REDOWNLOAD}, or {USE_TI}" if missing else None


def _said(spec: DraftSpec | None) -> dict[str, Any]:
    """The fields of a report that its spec says."""
    if spec is None:
        return {}
    said = {key: getattr(spec, key) for key in _OF_SPEC} | {"inexpressible": inexpressible(spec), "target": (spec.made_for or {}).get(NAME_KEY)}
    if spec.target_layers is not None:
        said |= {key: getattr(spec, key) for key in ("target_dim", "scale", "bias")}
        said |= {"target_layers": list(spec.target_layers), "target_hidden_size": spec.target_dim and spec.target_dim // len(spec.target_layers)}
    return said


def fit(directory: Path, target: str, methods: Mapping[str, bool]) -> dict[str, str]:
    """For each method, "yes" or why this draft cannot serve this target so.

    methods: for each name, whether it needs the projection.

    Of the target's weights only some values are read, if they are on this disk. Warns of a draft that
    was made for another target.
    """
    model = meta_target(target)
    names = [key for key, _ in model.model.named_parameters()]
    with contextlib.suppress(Pard2Error, KeyError):  # weights that are not on this disk, or named otherwise in their files
        stored = open_weights(model_directory(target))
        if model.model.config.to_dict().get("quantization_config") is None:  # codes tell nothing (`Target.identity`)
            model.identity = identity_keys(target, [(key, stored[key]) for key in names])
    answers = {}
    for method, target_dependent in methods.items():
        try:
            draft = load_draft(str(directory), model, torch.float32, target_dependent=target_dependent)
            if isinstance(draft, Eagle3Draft):  # whose files are not read on `meta`
                check_eagle3(draft, str(directory))
            answers[method] = "yes"
        except Pard2Error as error:
            answers[method] = str(error)
    return answers


def _kind(masked: bool, pard2: bool, dependent: bool) -> DraftKind:
    if dependent:
        return DraftKind.PROJECTED
    if pard2:
        return DraftKind.LAYERED
    return DraftKind.MASKED if masked else DraftKind.LM
