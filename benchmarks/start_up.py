"""What starting costs: CPU seconds, wall seconds and imported modules of the commands and imports that people
meet first, against `import torch, transformers`.

    python benchmarks/start_up.py --json docs/results/start_up.json

Each line is a process of its own, all lines in turn, medians of the rounds. `cold` is a first run: compiled
Python, compiled kernels and de-quantised weights are all made anew, in empty directories, once.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pard2.bench.result_file import write_result
from pard2.environment import meta

BASE = "import torch, transformers"
_PARD2 = ["-m", "pard2"]
_ANSWER = [*_PARD2, "generate", "-t", "smollm2", "-p", "Why is the sky blue?", "--stream", "--max-new-tokens", "4"]
LINES: dict[str, list[str]] = {
    BASE: ["-c", "import torch, transformers"],
    "import pard2": ["-c", "import pard2"],
    "from pard2 import Engine": ["-c", "from pard2 import Engine"],
    "pard2 --help": [*_PARD2, "--help"],
    "pard2 generate --help": [*_PARD2, "generate", "--help"],
    "pard2 draft info smollm2": [*_PARD2, "draft", "info", "smollm2"],
    "pard2 verify --samples 4 (refused)": [*_PARD2, "verify", "-t", "smollm2", "--samples", "4"],
}


def process(arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    """CPU and wall seconds of a Python process, and wall seconds to the first byte that it prints."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | environment)
    assert child.stdout is not None
    child.stdout.read(1)
    first = time.perf_counter() - began
    child.stdout.read()
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0  # it has been waited for
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": time.perf_counter() - began, "first": first}


def modules(arguments: list[str]) -> int:
    """How many modules a process imports."""
    ran = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True)
    return sum(line.startswith("import time:") and not line.endswith("imported package") for line in ran.stderr.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as empty:
        new = {"PARD2_CACHE": f"{empty}/pard2", "NUMBA_CACHE_DIR": f"{empty}/numba", "PYTHONPYCACHEPREFIX": f"{empty}/compiled"}
        cold = process(_ANSWER, new)
    process(_ANSWER, {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in [*LINES, "generate, warm"]}
    for _ in range(args.rounds):
        for name in found:
            found[name].append(process(LINES.get(name, _ANSWER), {}))
    middle = {name: {key: statistics.median(one[key] for one in each) for key in each[0]} for name, each in found.items()}
    for name, seconds in ({"generate, cold": cold} | middle).items():
        row = {"line": name, "cpu_seconds": round(seconds["cpu"], 2), "wall_seconds": round(seconds["wall"], 2)}
        row |= {"first_token_seconds": round(seconds["first"], 2)} if name.startswith("generate,") else {"modules": modules(LINES[name])}
        row["cpu_of_base"] = round(seconds["cpu"] / middle[BASE]["cpu"], 2)
        rows.append(row)
        print(row)
    write_result(args.json, meta(), rows)


if __name__ == "__main__":
    main()
