"""pard2: train PARD-2 drafts, decode losslessly with them, measure them."""

from importlib import import_module

from pard2.errors import Pard2Error, Pard2Warning

TYPE_CHECKING = False  # as `typing` has it, which takes longer to import than Ctrl-C may wait for
if TYPE_CHECKING:
    from pard2.engine.engine import Engine
    from pard2.engine.request import Completion, Request
    from pard2.engine.sampling import SamplingParams
    from pard2.engine.statistics import Stats, Step, TokenLogprob, Totals

__all__ = [
    "Completion", "Engine", "Pard2Error", "Pard2Warning", "Request", "SamplingParams", "Stats", "Step", "TokenLogprob", "Totals", "__version__",
]  # fmt: skip

__version__ = "0.1.0"

_MODULES = {
    "Completion": "pard2.engine.request",
    "Engine": "pard2.engine.engine",
    "Request": "pard2.engine.request",
    "SamplingParams": "pard2.engine.sampling",
    "Stats": "pard2.engine.statistics",
    "Step": "pard2.engine.statistics",
    "TokenLogprob": "pard2.engine.statistics",
    "Totals": "pard2.engine.statistics",
}


def __getattr__(name: str) -> object:
    # On first use: importing torch takes seconds, which `pard2 --help` need not wait for.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name == "transformers":  # ours; not in __all__, where it would hide the package of that name
        return import_module("pard2.transformers")
    raise AttributeError(f"module 'pard2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
