"""Which memory allocator the providers' processes run with: VAE_FAST_BENCH_ALLOCATOR.

Large outputs cost more in page faults than in arithmetic when malloc maps them afresh, so there are two tables: as a
user finds it, and with an allocator that keeps its memory for everybody, so that nobody wins by malloc alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

ALLOCATOR = os.environ.get("VAE_FAST_BENCH_ALLOCATOR", "default")
DESCRIPTIONS = {
    "default": "each provider's memory as it is without any setting; vae_fast keeps a pool for its outputs",
    "tuned": "glibc malloc keeps freed memory in every provider's process alike; vae_fast's own pool is off",
}
if ALLOCATOR not in DESCRIPTIONS:
    raise ValueError(f"VAE_FAST_BENCH_ALLOCATOR is {ALLOCATOR!r}, it takes {' or '.join(DESCRIPTIONS)}")

ENVIRONMENTS = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",  # no mapping of its own for anything: all comes from the heap ...
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),  # ... which does not shrink in a turn ...
        "MALLOC_TOP_PAD_": str(64 << 20),  # ... and grows in large steps
        "VAE_FAST_CACHE_MB": "0",
    },
}

# Steps before those that are timed, at least: with the tuned allocator they fault in what `release` gave back.
WARM_UP = 1 if ALLOCATOR == "tuned" else 0


def release() -> None:
    """Give freed memory back after a turn: the heaps of all processes together are more than a machine has."""
    if ALLOCATOR == "tuned":
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def environment(allocator: str = ALLOCATOR) -> Iterator[None]:
    """Processes that start in here have the allocator: glibc reads its settings once, at the start."""
    settings = ENVIRONMENTS[allocator]
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
