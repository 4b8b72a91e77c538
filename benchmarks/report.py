"""What a comparison says of itself: the table that is printed and the JSON record that is kept."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from allocator import ALLOCATOR, DESCRIPTIONS, ENVIRONMENTS

OURS = "vae_fast"
# tiny sizes, each provider once: does it run?
QUICK = os.environ.get("VAE_FAST_BENCH_QUICK", "") not in ("", "0")
STARTED = time.gmtime()
RESULTS = os.environ.get("VAE_FAST_BENCH_RESULTS")  # a folder; by default one per device and time

Case = dict[str, Any]


@dataclass
class Result:
    """One provider's times."""

    provider: str
    rounds: list[list[float]] = field(default_factory=list)  # seconds of every timed step, by round
    process: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None
    peak_bytes: int | None = None  # of one step, above its inputs

    @property
    def seconds(self) -> list[float]:
        return [t for times in self.rounds for t in times]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high

    def times_slower_than(self, other: Result) -> float:
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(
            statistics.median(mine) / statistics.median(theirs) for mine, theirs in pairs
        )

    def record(self, base: Result, floor: float | None) -> dict[str, Any]:
        if self.skipped:
            return {"provider": self.provider, "skipped": self.skipped}
        return {
            "provider": self.provider,
            "median_s": self.median,
            "quartiles_s": self.quartiles,
            f"times_{base.provider}": self.times_slower_than(base),
            "fraction_of_floor": floor and floor / self.median,
            "peak_bytes": self.peak_bytes,
            "process": self.process,
            "rounds_s": [[float(f"{t:.4g}") for t in times] for times in self.rounds],
        }


@dataclass
class Comparison:
    """What every provider took for one case."""

    title: str
    case: Case
    results: list[Result]
    bytes_moved: int | None = None  # the fewest bytes this work can read and write
    copy_bandwidth: float | None = None  # bytes per second

    def __getitem__(self, provider: str) -> Result:
        return next(r for r in self.results if r.provider == provider)

    @property
    def floor(self) -> float | None:
        """Seconds that a copy of as many bytes takes: no work faster than memory is possible beyond the caches."""
        return self.bytes_moved / self.copy_bandwidth if self.bytes_moved and self.copy_bandwidth else None

    @property
    def timed(self) -> list[Result]:
        return [r for r in self.results if r.rounds]

    @property
    def base(self) -> Result:
        """Everybody is compared with vae_fast (with the first provider where it was left out)."""
        return next((r for r in self.timed if r.provider == OURS), self.timed[0])

    def table(self) -> str:
        head = f"{'provider':<20}{'median ms':>12}{'quartiles':>22}{'x ' + self.base.provider:>13}"
        head += f"{'% of copy':>12}" if self.floor else ""
        peaks = any(r.peak_bytes for r in self.timed)
        title = self.title + (f" ({ALLOCATOR} allocator)" if ALLOCATOR != "default" else "")
        rows = [title, head + (f"{'peak MB':>12}" if peaks else "")]
        for r in self.timed:
            low, high = (f"{1e3 * q:.3f}" for q in r.quartiles)
            row = f"{r.provider:<20}{1e3 * r.median:>12.3f}{low + ' - ' + high:>22}"
            row += f"{r.times_slower_than(self.base):>13.2f}"
            if self.floor:
                row += f"{100 * self.floor / r.median:>12.0f}"
            if peaks:
                row += f"{r.peak_bytes / 1e6:>12.0f}" if r.peak_bytes else f"{'?':>12}"
            rows.append(row)
        rows += [f"{r.provider:<20}left out: {r.skipped}" for r in self.results if r.skipped]
        return "\n".join(rows)

    def record(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "case": self.case,
            "bytes_moved": self.bytes_moved,
            "copy_bandwidth": self.copy_bandwidth,
            "floor_s": self.floor,
            "providers": [r.record(self.base, self.floor) for r in self.results],
        }


class Copies:
    """Times a copy between large arrays that already exist: the speed of light here."""

    def __init__(self, megabytes: int = 256) -> None:
        import torch

        self.source = torch.ones(megabytes << 18)
        self.target = torch.zeros_like(self.source)
        self.times: list[float] = []

    def take_turn(self) -> None:
        self.target.copy_(self.source)  # warms up
        for _ in range(2):
            start = time.perf_counter()
            self.target.copy_(self.source)
            self.times.append(time.perf_counter() - start)

    @property
    def bandwidth(self) -> float:
        """Bytes per second, read and written."""
        return 2 * self.source.nbytes / statistics.median(self.times)


def describe_process() -> dict[str, Any]:
    """Versions, threads and instruction set, as a provider's own process sees them."""
    import torch

    versions = {}
    for name in ("torch", "jax", "jaxlib", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    settings = ("OMP_", "KMP_", "MALLOC_", "VAE_FAST_", "XLA_")
    return {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "environment": {
            k: v
            for k, v in os.environ.items()
            if k.startswith(settings) and not k.startswith("VAE_FAST_BENCH_")
        },
    }


def describe_machine() -> dict[str, Any]:
    def git(*args: str) -> str:
        command = ("git", *args)
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        import vae_fast

        info: Any = vae_fast.info()
    except ImportError:
        info = None
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", STARTED),
        "commit": git("rev-parse", "HEAD"),
        "changed_since_commit": bool(git("status", "--porcelain", "--untracked-files=no")),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "python": platform.python_version(),
        "vae_fast": info,
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

    try:
        import vae_fast

        isa = vae_fast.info()["backends"]["cpu"].get("isa")
    except ImportError:
        isa = None
    return {
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "isa": isa or torch.backends.cpu.get_cpu_capability().lower(),
        "allocator": ALLOCATOR,
    }


def results_folder(conditions: dict[str, Any]) -> Path:
    if RESULTS:
        return Path(RESULTS)
    device = "{device} {threads} threads {isa}".format(**conditions).lower()
    name = "-".join(re.findall(r"[a-z0-9]+", device))
    return Path(__file__).parent / "results" / name / time.strftime("%Y-%m-%d-%H%M", STARTED)


def save(name: str, comparisons: list[Comparison]) -> Path | None:
    """Write `<name>.json`: conditions, machine, commit, every timed step. A quick run measures and writes nothing."""
    if QUICK:
        return None
    conditions = describe_conditions()
    folder = results_folder(conditions)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{name}.json" if ALLOCATOR == "default" else f"{name}.{ALLOCATOR}.json")
    record = {
        "conditions": conditions,
        "allocator": {"meaning": DESCRIPTIONS[ALLOCATOR], "environment": ENVIRONMENTS[ALLOCATOR]},
        "command": os.environ.get("VAE_FAST_BENCH_COMMAND", "pytest benchmarks"),
        "versions": describe_process()["versions"],
        "machine": describe_machine(),
        "comparisons": [c.record() for c in comparisons],
    }
    path.write_text(compact(without_paths(record)) + "\n")
    return path


def without_paths(value: Any) -> Any:
    """The same with absolute paths cut to their last part: nobody's folders belong into a record."""
    if isinstance(value, dict):
        return {k: without_paths(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(v) for v in value]
    return re.sub(r"(?<![\w.:/-])/(?:[^\s/:'\"]+/)+", "", value) if isinstance(value, str) else value


def compact(record: dict[str, Any]) -> str:
    """Indented JSON with every list of plain numbers on one line."""
    numbers: list[str] = []

    def fold(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: fold(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            if value and all(isinstance(v, int | float) for v in value):
                numbers.append(json.dumps(value))
                return f"@{len(numbers) - 1}@"
            return [fold(v) for v in value]
        return value

    text = json.dumps(fold(record), indent=1, default=str)
    for i, line in enumerate(numbers):
        text = text.replace(f'"@{i}@"', line, 1)
    return text
