"""Drafts of kinds that are not decoded here, told from their config.json and called what they are."""

from collections.abc import Mapping
from typing import Any

from pard2.checkpoints.speculators import MODEL_TYPE
from pard2.errors import Pard2Error

_BY_SPECULATORS = {
    "dflash": "a DFlash draft",
    "dflash2": "a DFlash 2 draft",
    "dspark": "a DSpark draft",
    "eagle": "an EAGLE-1 draft",
    "mlp": "an MLP speculator",
    "mtp": "an MTP draft",
    "peagle": "a P-EAGLE draft",
    "xpress": "an XPress draft",
}
# Parts of architectures' names, in small letters; the first that is found says what it is.
_BY_ARCHITECTURE = {
    "dflash": "a DFlash draft",
    "dspark": "a DSpark draft",
    "peagle": "a P-EAGLE draft",
    "eagle3": "",
    "eaglellama": "an EAGLE-1 draft",
    "causallmeagle": "an EAGLE-1 draft",
    "eaglemodel": "an EAGLE-1 draft",
    "medusa": "Medusa heads",
    "mlpspeculator": "an MLP speculator",
}
_BY_KEY = {"dflash_config": "a DFlash draft", "dspark_config": "a DSpark draft"}
_CAN = "what is decoded here: EAGLE-3 (plain or speculators' layout), PARD, PARD-2 and ordinary language models"


def refuse_others(keys: Mapping[str, Any], name: str) -> None:
    """Raises `Pard2Error` for the config of a draft of a kind that is not decoded here."""
    kind = ""
    if MODEL_TYPE in keys:
        said = keys[MODEL_TYPE]
        kind = "" if said == "eagle3" else _BY_SPECULATORS.get(str(said), f"a draft of speculators' kind {said!r}")
    else:
        names = keys.get("architectures")
        for one in [str(one).lower() for one in names] if isinstance(names, list) else []:
            kind = kind or next((what for part, what in _BY_ARCHITECTURE.items() if part in one), "")
        kind = kind or next((what for key, what in _BY_KEY.items() if key in keys), "")
        if keys.get("model_type") in ("eagle", "medusa", "mlp_speculator"):
            kind = kind or f"a draft of the kind {keys['model_type']!r}"
    if kind:
        raise Pard2Error(f"{name!r} is {kind}; {_CAN}")
