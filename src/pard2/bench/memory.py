"""How much memory work took, beyond what it left behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """bytes: the most that was held at once, less what is held when the work is done; None where this machine
    does not tell.
    """

    bytes: int | None = None


@contextmanager
def watched(device: torch.device) -> Iterator[Peak]:
    """Measure what is done inside: a GPU's memory, or the process's, which Linux alone tells."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
        return
    try:
        _RESET.write_text("5")  # the highest resident size begins anew (man proc_pid_clear_refs)
    except OSError:
        yield peak
        return
    yield peak
    held = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    highest, now = (1024 * int(held[key].split()[0]) for key in ("VmHWM", "VmRSS"))
    peak.bytes = max(0, highest - now)
