"""What something ran on, in words: of `environment.meta`, as a file has it."""

from typing import Any

from pard2.units import counted


def _part(meta: dict[str, Any], key: str) -> dict[str, Any]:
    found = meta.get(key)
    return found if isinstance(found, dict) else {}


def machine(meta: dict[str, Any], device: str | None = None) -> str:
    """The GPU, or the CPU with its units and threads; empty where the file does not say.

    device: what it ran on, where that is known; by default the GPU where there is one.
    """
    hardware = _part(meta, "hardware")
    if hardware.get("gpu") and device != "cpu":
        return str(hardware["gpu"])
    if not hardware.get("cpu"):
        return ""
    features = hardware.get("features")
    units = f" with {features[-1]}" if isinstance(features, list) and features else ""
    counts = "".join(f", {counted(hardware[key], key[:-1])}" for key in ("cores", "threads") if isinstance(hardware.get(key), int))
    return f"{hardware['cpu']}{units}{counts}"


def software(meta: dict[str, Any]) -> str:
    """Versions, the commit of a source tree, and the day."""
    versions = ", ".join(f"{name} {version}" for name, version in _part(meta, "versions").items())
    commit = f"commit {meta['commit']}" if meta.get("commit") else ""
    return ", ".join(filter(None, (versions, commit, str(meta.get("date") or "")[:10])))
