"""Memory that a training step frees is kept for the next one."""

import ctypes
import sys

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEPT = 2**31 - 1  # the largest that a C int holds, as glibc's own environment variables do
_MORE = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory in place of handing it back; True where it can be told so (glibc).

    By default it maps every large block anew, and the kernel clears its pages one by one at the first touch:
    in a training step, whose tensors are a few MB each, that was a third of a CPU's time. With this, the
    process stays as large as its largest step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return all(mallopt(option, value) == 1 for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, _MORE)))
