"""A comparison of providers: its printed table and its JSON record."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import settings
from .allocator import DESCRIPTIONS, environment
from .floors import Least
from .machine import describe_conditions, describe_machine, describe_process, folder_of
from .settings import ALLOCATOR, COMMAND
from .timing import OURS, Timing

Case = dict[str, Any]


@dataclass(kw_only=True)
class Times:
    rounds: list[list[float]] = field(default_factory=list)  # seconds of every timed step, by round

    @property
    def timing(self) -> Timing:
        return Timing.of(self.rounds)


@dataclass
class Result(Times):
    """One provider's times."""

    provider: str
    parts: dict[str, Times] = field(default_factory=dict)  # forward alone, backward alone
    process: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None
    peak_bytes: int | None = None

    @property
    def timing(self) -> Timing:
        return Timing.of(self.rounds, self.peak_bytes)

    def record(self, process: Mapping[str, Any]) -> dict[str, Any]:
        if self.skipped:
            return {"provider": self.provider, "skipped": self.skipped}
        return {
            "provider": self.provider,
            **self.timing.written(),
            "parts": {name: times.timing.written() for name, times in self.parts.items()},
            "process": {k: v for k, v in self.process.items() if v != process.get(k)},
        }


@dataclass
class Comparison:
    """What every provider took for one case."""

    title: str
    case: Case
    results: list[Result]
    least: dict[str, Least] = field(default_factory=dict)  # of every pass
    copy_bandwidth: float | None = None  # bytes per second
    normals_per_second: float | None = None

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
        return self.floors(*self.least)["floor_s"]

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
            timing = r.timing
            low, high = (f"{1e3 * q:.3f}" for q in (timing.low, timing.high))
            row = f"{r.provider:<20}{1e3 * timing.median:>12.3f}{low + ' - ' + high:>22}"
            row += f"{timing.times_slower_than(self.base.timing)[1]:>13.2f}"
            if self.floor:
                row += f"{100 * self.floor / timing.median:>12.0f}"
            row += "".join(f"{1e3 * r.parts[name].timing.median:>13.3f}" for name in parts)
            if peaks:
                row += f"{'?' if r.peak_bytes is None else round(r.peak_bytes / 1e6):>12}"
            rows.append(row)
        rows += [f"{r.provider:<20}left out: {r.skipped}" for r in self.results if r.skipped]
        return "\n".join(rows)

    def record(self, process: Mapping[str, Any]) -> dict[str, Any]:
        """`process`: what the providers' processes have in common, which is not said for each."""
        return {
            "title": self.title,
            "case": self.case,
            "copy_bandwidth": self.copy_bandwidth,
            "normals_per_second": self.normals_per_second,
            **self.floors(*self.least),
            "parts": {name: self.floors(name) for name in self.base.parts},
            "providers": [r.record(process) for r in self.results],
        }


def results_folder(conditions: dict[str, Any]) -> Path:
    return Path(settings.RESULTS) if settings.RESULTS else folder_of(conditions)


def save(name: str, comparisons: list[Comparison]) -> Path | None:
    """Write `<name>.json`: conditions, machine, commit, times. A quick run measures and writes nothing."""
    if settings.QUICK:
        return None
    conditions = describe_conditions()
    folder = results_folder(conditions)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{name}.json" if ALLOCATOR == "default" else f"{name}.{ALLOCATOR}.json")
    with environment():
        process = describe_process()
    record = {
        "conditions": conditions,
        "allocator": DESCRIPTIONS[ALLOCATOR],
        "command": COMMAND,
        "process": process,
        "machine": describe_machine(),
        "comparisons": [c.record(process) for c in comparisons],
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
