"""What a draft's config.json says beside the model itself, as a `DraftSpec`, and back (METHOD: section 7).

Options that the released layout does not know are written only where they are on.
"""

from typing import Any

from pard2.errors import Pard2Error
from pard2.models.draft import DEFAULT_SCALE, DraftSpec
from pard2.models.identity import NAME_KEY, SAMPLES_KEY

# Published runs trained 16 (PARD-2) and 8 (PARD) masks a pass and did not write the number down.
_PUBLISHED_DRAFT_TOKENS = {"pard2": 16, "pard": 8}
_MOST_DRAFT_TOKENS = 1024


def read_spec(config: dict[str, Any], name: str) -> DraftSpec | None:
    """The draft's own keys in a config; None for an ordinary LM. Accepts the older names.

    Raises `Pard2Error` for a draft without its mask token or with a key of the wrong type.
    """
    kind = config.get("spd_type") or ("pard2" if config.get("pard2") else None)
    if kind is None and "pard_token" not in config:
        return None
    kind = kind or "pard"
    if not isinstance(kind, str) or kind not in _PUBLISHED_DRAFT_TOKENS:
        raise Pard2Error(f"{name!r}: spd_type {kind!r} is neither 'pard' nor 'pard2'")
    mask = config.get("pard_token")
    if type(mask) is not int or not 0 <= mask < config.get("vocab_size", 0):
        raise Pard2Error(f"{name!r}: config.json needs `pard_token`, a token id below {config.get('vocab_size')}, but has {mask!r}")
    layers = config.get("pard2_target_layers")
    if layers is not None and not (isinstance(layers, list) and layers and all(type(i) is int for i in layers)):
        raise Pard2Error(f"{name!r}: `pard2_target_layers` must be a list of layer numbers, not {layers!r}")
    made_for = {key: first_key(config, name, str, key, default="") for key in (NAME_KEY, SAMPLES_KEY)}
    return DraftSpec(
        mask_token=mask,
        draft_tokens=first_key(config, name, int, "pard2_draft_tokens", default=_PUBLISHED_DRAFT_TOKENS[kind]),
        target_layers=tuple(layers) if kind == "pard2" and layers else None,
        target_dim=first_key(config, name, int, "pard2_target_dim", "pard_target_dim"),
        scale=first_key(config, name, (int, float), "pard2_scale", "pard_scale", "feat_scale", default=DEFAULT_SCALE),
        bias=first_key(config, name, bool, "pard2_proj_bias", "proj_bias", default=False),
        shared_vocabulary=first_key(config, name, bool, "pard2_shared_vocabulary", default=False),
        normalise_features=first_key(config, name, bool, "pard2_normalise_features", default=False),
        mask_feature=first_key(config, name, bool, "pard2_mask_feature", default=False),
        vocabulary_size=first_key(config, name, int, "pard2_vocabulary_size"),
        made_for=made_for if made_for[SAMPLES_KEY] else None,
        template_arguments=first_key(config, name, list, "pard2_chat_template_kwargs"),
    )


def first_key(config: dict[str, Any], name: str, kind: type | tuple, *keys: str, default: Any = None) -> Any:
    """The value of the first of these keys that the config has. Raises `Pard2Error` for another kind."""
    for key in keys:
        if key in config and config[key] is not None:
            # JSON's true is no number, though Python's is.
            if not isinstance(config[key], kind) or (type(config[key]) is bool and kind is not bool):
                raise Pard2Error(f"{name!r}: config key `{key}` has the wrong type: {config[key]!r}")
            most = _MOST_DRAFT_TOKENS if key == "pard2_draft_tokens" else 2**31
            if kind not in (bool, str, list, dict) and not (1 if kind is int else -most) <= config[key] <= most:
                bound = f"at most {most}" if config[key] > most else "at least 1" if kind is int else "a finite number"
                raise Pard2Error(f"{name!r}: config key `{key}` must be {bound}, not {config[key]}")
            return config[key]
    return default


def is_spec_key(key: str) -> bool:
    """Whether a config's key says something of the draft, beside the model itself."""
    return key.startswith("pard2") or key in ("spd_type", "pard_token", "pard_scale", "feat_scale", "pard_target_dim", "proj_bias")


def spec_keys(spec: DraftSpec) -> dict[str, Any]:
    """The config keys that say `spec`, every one written out."""
    keys: dict[str, Any] = {
        "spd_type": "pard2" if spec.target_layers else "pard",
        "pard2": spec.target_layers is not None,
        "pard_token": spec.mask_token,
        "pard2_draft_tokens": spec.draft_tokens,
    }
    if spec.target_layers:
        keys |= {
            "pard2_target_layers": list(spec.target_layers),
            "pard2_target_dim": spec.target_dim,
            "pard2_scale": spec.scale,
            "pard2_proj_bias": spec.bias,
        }
    options = {
        "pard2_shared_vocabulary": spec.shared_vocabulary,
        "pard2_normalise_features": spec.normalise_features,
        "pard2_mask_feature": spec.mask_feature,
    }
    if spec.vocabulary_size is not None:
        keys["pard2_vocabulary_size"] = spec.vocabulary_size
    if spec.template_arguments is not None:
        keys["pard2_chat_template_kwargs"] = spec.template_arguments
    return keys | (spec.made_for or {}) | {key: True for key, on in options.items() if on}


def inexpressible(spec: DraftSpec) -> list[str]:
    """What of a draft other readers of the released layout would leave out, and so decode otherwise."""
    options = {
        "shared vocabulary": spec.shared_vocabulary,
        "normalised features": spec.normalise_features,
        "learned mask feature": spec.mask_feature,
        "part of the vocabulary": spec.vocabulary_size is not None,
    }
    return [option for option, on in options.items() if on]
