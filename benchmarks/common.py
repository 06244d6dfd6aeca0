"""What every benchmark script shares: what it ran on, intervals, and result files that appear whole."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import pard2

ROOT = Path(__file__).parent.parent


def meta() -> dict:
    """argv, commit, versions, hardware and date of this run."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    capabilities = torch.cpu.get_capabilities()
    features = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)]
    return {
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit,
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


def bootstrap(items: Sequence, statistic: Callable[[Sequence], float], samples: int = 2000, seed: int = 0) -> list[float]:
    """95 % percentile interval of a statistic over resampled prompts."""
    generator = np.random.default_rng(seed)
    values = [statistic([items[i] for i in generator.integers(0, len(items), len(items))]) for _ in range(samples)]
    return [round(float(np.percentile(values, q)), 4) for q in (2.5, 97.5)]


def write_result(path: Path, about: dict, results: list[dict], **more: object) -> None:
    """`{"meta": .., "results": [..]}`, written beside and renamed. about: `meta()` as it was when the run began."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps({"meta": about, "results": results, **more}, indent=1) + "\n")
    beside.replace(path)
