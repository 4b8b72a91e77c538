"""What is recorded of the machine, of a process, and where the records of both go."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from .settings import ALLOCATOR, IN_CHECKOUT, PREFIX, RECORDS, ROOT, STARTED


def version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def describe_process() -> dict[str, Any]:
    """Versions, threads and instruction set, as a provider's own process sees them."""
    import torch

    versions = {name: version_of(name) for name in ("torch", "jax", "jaxlib", "numpy")}
    settings = ("OMP_", "KMP_", "MALLOC_", "VAE_FAST_", "XLA_")
    return {
        "versions": {name: version for name, version in versions.items() if version},
        "threads": torch.get_num_threads(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "environment": {
            k: v for k, v in os.environ.items() if k.startswith(settings) and not k.startswith(PREFIX)
        },
    }


def describe_machine() -> dict[str, Any]:
    def git(*args: str) -> str:
        if not IN_CHECKOUT:  # an installed copy may lie in somebody else's repository
            return ""
        done = subprocess.run(("git", *args), cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    import vae_fast

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", STARTED),
        "commit": git("rev-parse", "HEAD"),
        "changed_since_commit": bool(git("status", "--porcelain", "--untracked-files=no")),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "python": platform.python_version(),
        "vae_fast": vae_fast.info(),
    }


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def describe_conditions() -> dict[str, Any]:
    """What two records must share to be compared."""
    import torch

    import vae_fast

    isa = vae_fast.info()["backends"]["cpu"].get("isa")
    return {
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "isa": isa or torch.backends.cpu.get_cpu_capability().lower(),
        "allocator": ALLOCATOR,
    }


def folder_of(conditions: dict[str, Any]) -> Path:
    """The folder of this run's records among all records."""
    device = "{device} {threads} threads {isa}".format(**conditions).lower()
    return RECORDS / "-".join(re.findall(r"[a-z0-9]+", device)) / time.strftime("%Y-%m-%d-%H%M", STARTED)
