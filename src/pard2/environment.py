"""What a result was measured on, so that nobody has to remember it."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import pard2


def meta() -> dict[str, Any]:
    """argv, commit, versions, hardware and date of this run."""
    capabilities = torch.cpu.get_capabilities()
    features = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)]
    return {
        "argv": [Path(sys.argv[0]).name.replace("__main__.py", "pard2"), *sys.argv[1:]],
        "commit": _commit(Path(__file__)),
        "versions": {"python": platform.python_version(), "pard2": pard2.__version__} | {name: version(name) for name in ("torch", "transformers")},
        "hardware": {
            "cpu": capabilities.get("cpu_name"),
            "features": features,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit(file: Path) -> str | None:
    """The commit of the repository that tracks this file.

    None for an installed package, even where it lies inside somebody's repository.
    """
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", file.name], cwd=file.parent, capture_output=True, check=True)
        described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=file.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
