"""What `vae-fast train` does to its process, so that a step does not pay for page faults.

By default glibc maps every large tensor afresh and unmaps it when it is freed: the system then zeroes the same pages
again in every step. Here freed memory stays with malloc and is handed out again. The process keeps its peak.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h


def set_up_process() -> bool:
    """Has malloc keep freed memory. False where malloc is not glibc's, and nothing was done. Call it early."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (musl has a mallopt that does nothing)
    except (OSError, AttributeError):
        return False
    settings = [
        (_M_MMAP_MAX, 0),  # no mapping of its own for any tensor: all come from the heap
        (_M_TRIM_THRESHOLD, -1),  # which never shrinks
        (_M_TOP_PAD, 64 << 20),  # and grows in large steps
    ]
    return all(libc.mallopt(*setting) == 1 for setting in settings)
