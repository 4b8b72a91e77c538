"""Where the benchmarks work, and what the command tells their process in environment variables."""

from __future__ import annotations

import os
import time
from pathlib import Path

PACKAGE = Path(__file__).parent
# A checkout has the records beside the code. An installed copy has none and works in the current folder.
IN_CHECKOUT = (PACKAGE / "results").is_dir()
ROOT = PACKAGE.parent if IN_CHECKOUT else Path.cwd()
RECORDS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "benchmarks"
STARTED = time.gmtime()

PREFIX = "VAE_FAST_BENCH_"


def environment(**settings: object) -> dict[str, str]:
    """The environment of a process that reads `settings` here."""
    return os.environ | {PREFIX + name.upper(): str(value) for name, value in settings.items()}


def _read(name: str, default: str = "") -> str:
    return os.environ.get(PREFIX + name, default)


# Tiny sizes, each provider once: does it run, and is it right?
QUICK = _read("QUICK") not in ("", "0")
ALLOCATOR = _read("ALLOCATOR", "default")
RESULTS = _read("RESULTS")  # a folder for the records; by default one for each device and time
COMMAND = _read("COMMAND", "pytest benchmarks")  # what made the record
EVENTS = _read("EVENTS")  # a file for the run's progress
