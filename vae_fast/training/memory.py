"""How much memory there is for a data set: the machine's, the container's, the process' limits, the device's."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import torch

_CGROUPS = Path("/sys/fs/cgroup")
_DEVICE_SHARE = 0.5  # of a device's free memory that a data set may take: a step needs memory, too


def available() -> float:
    """Bytes that the process can still take before the first of all limits."""
    return min(psutil.virtual_memory().available, *_of_cgroups(), *_of_process())


def fits_on(device: torch.device, size: int) -> bool:
    return device.type != "cuda" or size <= _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]


def _of_process() -> list[float]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    used = psutil.Process().memory_info()
    limits = {resource.RLIMIT_AS: used.vms, resource.RLIMIT_DATA: getattr(used, "data", 0)}
    soft = {limit: resource.getrlimit(limit)[0] for limit in limits}
    return [soft[n] - limits[n] for n in limits if soft[n] != resource.RLIM_INFINITY] or [math.inf]


def _of_cgroups(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """What the limits of the process' control groups and of those above leave. Pages of files count as free, as far as
    the system can drop them."""
    found = [math.inf]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.lstrip("/")
        found += [_left_in(place, *names) for place in (folder, *folder.parents) if place.is_relative_to(top)]
    return found


def _left_in(folder: Path, limit: str, current: str, droppable: str) -> float:
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return math.inf
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(most) - int((folder / current).read_text()) + int(stat.get(droppable, 0))
    except (OSError, ValueError):  # the group at the top has no limit, a container may not see its own
        return math.inf
