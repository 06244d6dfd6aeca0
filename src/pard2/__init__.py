"""pard2: train PARD-2 drafts, decode losslessly with them, measure them, hand them on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pard2.engine.engine import Completion, Engine
    from pard2.engine.sampling import SamplingParams

__all__ = ["Completion", "Engine", "SamplingParams", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On first use: importing torch takes seconds, which `pard2 --help` need not wait for.
    if name in ("Completion", "Engine"):
        from pard2.engine import engine

        return getattr(engine, name)
    if name == "SamplingParams":
        from pard2.engine.sampling import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'pard2' has no attribute {name!r}")
