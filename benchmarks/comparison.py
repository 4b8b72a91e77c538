"""What a comparison says of itself: the table that is printed and the JSON record that is kept."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

from allocator import ALLOCATOR, DESCRIPTIONS, ENVIRONMENTS

OURS = "vae_fast"
# tiny sizes, each provider once: does it run?
QUICK = os.environ.get("VAE_FAST_BENCH_QUICK", "") not in ("", "0")
STARTED = time.gmtime()
RESULTS = os.environ.get("VAE_FAST_BENCH_RESULTS")  # a folder; by default one per device and time

Case = dict[str, Any]


@dataclass(frozen=True)
class Least:
    """What one pass over the data has to do at least."""

    bytes: int  # that it reads and writes
    normals: int = 0  # random numbers that it makes

    def __add__(self, other: Least) -> Least:
        return Least(self.bytes + other.bytes, self.normals + other.normals)


@dataclass(kw_only=True)
class Times:
    rounds: list[list[float]] = field(default_factory=list)  # seconds of every timed step, by round

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

    def times_slower_than(self, other: Times) -> float:
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(
            statistics.median(mine) / statistics.median(theirs) for mine, theirs in pairs
        )

    def numbers(self, name: str, base: Times, floor: float | None) -> dict[str, Any]:
        return {
            "median_s": self.median,
            "quartiles_s": self.quartiles,
            f"times_{name}": self.times_slower_than(base),
            "fraction_of_floor": floor and floor / self.median,
            "rounds_s": [[float(f"{t:.4g}") for t in times] for times in self.rounds],
        }


@dataclass
class Result(Times):
    """One provider's times."""

    provider: str
    parts: dict[str, Times] = field(default_factory=dict)  # forward alone, backward alone
    process: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None
    peak_bytes: int | None = None  # of one step, above its inputs


@dataclass
class Comparison:
    """What every provider took for one case."""

    title: str
    case: Case
    results: list[Result]
    least: dict[str, Least] = field(default_factory=dict)  # of every pass
    copy_bandwidth: float | None = None  # bytes per second
    normals_per_second: float | None = None

    def __getitem__(self, provider: str) -> Result:
        return next(r for r in self.results if r.provider == provider)

    def floors(self, *parts: str) -> dict[str, Any]:
        """Seconds that a copy of as many bytes takes: no work faster than memory is possible beyond the caches. And
        seconds that vae_fast's own generator takes for as many random numbers, in the caches."""
        least = sum((self.least[name] for name in parts if name in self.least), Least(0))
        return {
            "bytes_moved": least.bytes or None,
            "normals": least.normals or None,
            "floor_s": least.bytes / self.copy_bandwidth if least.bytes and self.copy_bandwidth else None,
            "noise_floor_s": least.normals / self.normals_per_second
            if least.normals and self.normals_per_second
            else None,
        }

    @property
    def floor(self) -> float | None:
        floor: float | None = self.floors(*self.least)["floor_s"]
        return floor

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
        peaks = any(r.peak_bytes is not None for r in self.timed)
        parts = self.base.parts
        head += "".join(f"{name + ' ms':>13}" for name in parts)
        title = self.title + (f" ({ALLOCATOR} allocator)" if ALLOCATOR != "default" else "")
        rows = [title, head + (f"{'peak MB':>12}" if peaks else "")]
        for r in self.timed:
            low, high = (f"{1e3 * q:.3f}" for q in r.quartiles)
            row = f"{r.provider:<20}{1e3 * r.median:>12.3f}{low + ' - ' + high:>22}"
            row += f"{r.times_slower_than(self.base):>13.2f}"
            if self.floor:
                row += f"{100 * self.floor / r.median:>12.0f}"
            row += "".join(f"{1e3 * r.parts[name].median:>13.3f}" for name in parts)
            if peaks:
                row += f"{'?' if r.peak_bytes is None else round(r.peak_bytes / 1e6):>12}"
            rows.append(row)
        rows += [f"{r.provider:<20}left out: {r.skipped}" for r in self.results if r.skipped]
        return "\n".join(rows)

    def record(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "case": self.case,
            "copy_bandwidth": self.copy_bandwidth,
            "normals_per_second": self.normals_per_second,
            **self.floors(*self.least),
            "parts": {name: self.floors(name) for name in self.base.parts},
            "providers": [self._record(r) for r in self.results],
        }

    def _record(self, result: Result) -> dict[str, Any]:
        base = self.base
        if result.skipped:
            return {"provider": result.provider, "skipped": result.skipped}
        return {
            "provider": result.provider,
            **result.numbers(base.provider, base, self.floor),
            "parts": {
                name: times.numbers(base.provider, base.parts[name], self.floors(name)["floor_s"])
                for name, times in result.parts.items()
            },
            "peak_bytes": result.peak_bytes,
            "process": result.process,
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


class Noise:
    """Times vae_fast's own generator where memory costs nothing: the arithmetic that sampling cannot do without."""

    SHAPE = (256, 1024)  # a megabyte, which stays in the caches

    def __init__(self) -> None:
        self.times: list[float] = []

    @staticmethod
    def here() -> bool:
        return util.find_spec("vae_fast") is not None

    def take_turn(self) -> None:
        import torch

        import vae_fast

        for k in range(-5, 20):  # the first warm up
            state = torch.tensor([7, k])
            start = time.perf_counter()
            vae_fast.noise(self.SHAPE, state)
            if k >= 0:
                self.times.append(time.perf_counter() - start)

    @property
    def normals_per_second(self) -> float:
        return math.prod(self.SHAPE) / statistics.median(self.times)


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
