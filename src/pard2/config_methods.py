"""What a run's `method` changes in its schema: defaults of its own, and fields that do not fit it.

It imports no torch. The fields are those of `config.TrainConfig`, by section.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_FEATURES = {
    "draft": ("target_layers", "scale", "standardise_features", "normalise_features", "learn_mask_feature"),
    "objective": ("feature_drop",),
    "optimizer": ("projection_lr_ratio",),
}
_MASKS = {
    "draft": ("mask_token", "vocabulary_size"),
    "objective": ("draft_tokens", "weighting", "anchors", "retention", "min_retention", "cod_correction", "d_pace_floor"),
}
_EAGLE3 = {"draft": ("norm_before_residual", "norm_output", "feature_norm"), "objective": ("depth_decay",)}
# What an EAGLE-3 draft has no place for: it is no cut of the target, its embedding is the target's, and its
# one layer reads features as they are, at every slot.
_NOT_EAGLE3 = {
    "draft": ("layers", "mask_token", "share_vocabulary", "scale", "standardise_features", "normalise_features", "learn_mask_feature"),
    "objective": ("feature_drop",),
    "optimizer": ("projection_lr_ratio",),
}


@dataclass(frozen=True, kw_only=True)
class TrainingMethod:
    """What sort of draft a run trains.

    title: for people.
    features: the draft takes in hidden states of the target.
    masks: it proposes several tokens in a pass.
    cut: it is a causal LM, a cut of the target or a model of its own; else one new layer.
    unfit_groups: sections and fields that mean nothing here, each group with the reason.
    defaults: by section and field, where they are not the schema's.
    """

    title: str
    features: bool
    masks: bool
    cut: bool = True
    unfit_groups: tuple[tuple[Mapping[str, tuple[str, ...]], str], ...]
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def unfit(self) -> dict[tuple[str, str], str]:
        """Fields that mean nothing here, as section and name, each with the reason."""
        return {(section, name): why for group, why in self.unfit_groups for section, names in group.items() for name in names}


_OF_EAGLE3 = (_EAGLE3, "trains no EAGLE-3 draft")
_NO_FEATURES = (_FEATURES, "takes no features of the target")
METHODS = {
    "pard2": TrainingMethod(title="PARD-2", features=True, masks=True, unfit_groups=(_OF_EAGLE3,)),
    "pard": TrainingMethod(
        title="PARD",
        features=False,
        masks=True,
        unfit_groups=(_OF_EAGLE3, _NO_FEATURES),
        defaults={"objective": {"draft_tokens": 8, "min_retention": 0.2, "weighting": "none", "ce_alpha": 1.0, "kd_alpha": 0.0}},
    ),
    "ar": TrainingMethod(
        title="ordinary small draft",
        features=False,
        masks=False,
        unfit_groups=(_OF_EAGLE3, _NO_FEATURES, (_MASKS, "trains one token a pass")),
        defaults={"objective": {"draft_tokens": 1, "weighting": "none"}},
    ),
    # The published chains are whole, at every anchor, and learn the target's distribution alone.
    "eagle3": TrainingMethod(
        title="EAGLE-3",
        features=True,
        masks=False,
        cut=False,
        unfit_groups=((_NOT_EAGLE3, "trains one new layer on the target's embedding and features"),),
        defaults={
            "objective": {
                "draft_tokens": 7,
                "depth_decay": 0.8,
                "retention": 1.0,
                "min_retention": 1.0,
                "weighting": "none",
                "ce_alpha": 0.0,
                "feature_drop": 0.0,
            },
        },
    ),
}


def fit_method(document: dict[str, Any]) -> dict[str, Any]:
    """A run's sections, not checked yet, with the defaults of its method.

    Raises ValueError for a field that does not fit the method.
    """
    name = document.get("method", "pard2")
    method = METHODS.get(name) if isinstance(name, str) else None
    if method is None:  # the schema says what is wrong
        return document
    for (section, field_name), why in method.unfit.items():
        given = document.get(section)
        if isinstance(given, dict) and given.get(field_name) is not None:
            raise ValueError(f"{section}.{field_name} does not fit method={name}, which {why}; leave it out")
    filled = dict(document)
    for section, values in method.defaults.items():
        given = document.get(section, {})
        if given is None or isinstance(given, dict):
            filled[section] = {**values, **(given or {})}
    return filled


def without_unfit(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """A run's sections without the fields that do not fit its method, in place."""
    for section, field_name in METHODS[name].unfit:
        if isinstance(document.get(section), dict):
            document[section].pop(field_name, None)
    return document
