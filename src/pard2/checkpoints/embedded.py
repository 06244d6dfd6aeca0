"""The embedded pair: SmolLM2-135M-Instruct, and the draft for it that ships with this package."""

from pathlib import Path

from pard2.errors import Pard2Error

EMBEDDED = "smollm2"  # names the target as well as its draft
EMBEDDED_ID, EMBEDDED_LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"  # of the target, on the hub
EMBEDDED_DRAFT_DIRECTORY = Path(__file__).parent.parent / "assets" / "smollm2-draft"


def embedded_draft() -> str:
    """Directory of the shipped draft. Raises `Pard2Error` if this installation lacks it."""
    if not (EMBEDDED_DRAFT_DIRECTORY / "config.json").is_file():
        raise Pard2Error(f"this installation of pard2 lacks the embedded draft for {EMBEDDED!r}; install it again, or name another with `draft`")
    return str(EMBEDDED_DRAFT_DIRECTORY)
