"""Which memory allocator the providers' processes run with.

Large outputs cost more in page faults than in arithmetic when malloc maps them afresh, so there are two tables: as a
user finds it, and with an allocator that keeps its memory for everybody, so that nobody wins by malloc alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from . import settings

DESCRIPTIONS = {
    "default": "each provider's memory as it is without any setting; vae_fast keeps a pool for its outputs",
    "tuned": "glibc malloc keeps freed memory in every provider's process alike; vae_fast's own pool is off",
}
if settings.ALLOCATOR not in DESCRIPTIONS:
    raise ValueError(
        f"expected {settings.PREFIX}ALLOCATOR to be {' or '.join(DESCRIPTIONS)}, but got {settings.ALLOCATOR!r}"
    )

ENVIRONMENTS = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",  # no mapping of its own for anything: all comes from the heap ...
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),  # ... which does not shrink ...
        "MALLOC_TOP_PAD_": str(64 << 20),  # ... and grows in large steps
        "VAE_FAST_CACHE_MB": "0",
    },
}


# Steps until a heap that gave its memory back has everything again. They are not timed.
WARM_UP = 5 if settings.ALLOCATOR == "tuned" else 0


def give_back(*, if_scarce: bool = False) -> bool:
    """Whether freed memory went to the other processes: what all keep together may be more than a machine has."""
    if settings.ALLOCATOR == "default" or (if_scarce and not _is_scarce()):
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))


def _is_scarce() -> bool:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kilobytes = {name: int(number) for name, number, *_ in lines}
    return kilobytes["MemAvailable:"] < kilobytes["MemTotal:"] / 3


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """Processes that start in here have the allocator: glibc reads its settings once, at the start."""
    chosen = ENVIRONMENTS[settings.ALLOCATOR]
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
