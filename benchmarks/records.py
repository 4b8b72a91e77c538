"""Reads what the benchmarks wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vae_fast.training.errors import TrainingError

from .timing import OURS, Timing

MACHINE = ("device", "threads", "isa")  # only times from the same of these can be compared


class RecordError(TrainingError):
    """A record is missing, or is none, or cannot be used together with another."""


@dataclass(frozen=True)
class Case:
    title: str
    timings: Mapping[str, Timing]  # by provider
    floor: float | None  # seconds: the fewest bytes over the bandwidth of a copy
    # seconds: the random numbers alone, as vae_fast makes them in the caches
    noise_floor: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Case] = field(default_factory=dict)  # forward alone, backward alone

    @property
    def ours(self) -> Timing | None:
        return self.timings.get(OURS)

    @property
    def others(self) -> dict[str, Timing]:
        """Those who do without vae_fast."""
        return {name: t for name, t in self.timings.items() if OURS not in name}


@dataclass(frozen=True)
class Record:
    """All cases that were measured with one allocator."""

    conditions: Mapping[str, Any]  # device, threads, isa, allocator
    meaning: str  # of the allocator
    time: str
    commits: tuple[str, ...]
    command: str
    versions: Mapping[str, str]
    cases: tuple[Case, ...]

    @property
    def cases_and_parts(self) -> list[Case]:
        return [c for case in self.cases for c in (case, *case.parts.values())]

    @property
    def machine(self) -> tuple[Any, ...]:
        return tuple(self.conditions[name] for name in MACHINE)

    def describe(self) -> str:
        device, threads, isa = self.machine
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items() if k in ("torch", "jax"))
        allocator, commit = self.conditions["allocator"], ", ".join(c[:10] or "unknown" for c in self.commits)
        return f"{device}, {threads} threads, {isa}; {versions}; {allocator} allocator; {self.time}, commit {commit}"


def load(path: Path) -> dict[str, Record]:
    """The records of a file or of all files in a folder, by allocator. RecordError in one line."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise RecordError(f"{path}: no records (*.json) in this folder")
    return load_files(files)


def load_files(files: list[Path]) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for file in files:
        record = _read(file)
        before = records.get(record.conditions["allocator"])
        first = next(iter(records.values()), record)
        if record.machine != first.machine:
            raise RecordError(f"{file}: measured on {record.machine}, {files[0]} on {first.machine}")
        if before is not None:
            record = replace(
                before,
                time=min(before.time, record.time),
                commits=tuple(dict.fromkeys(before.commits + record.commits)),
                cases=before.cases + record.cases,
            )
        records[record.conditions["allocator"]] = record
    return records


def newest(results: Path) -> Path:
    """The folder with the newest record anywhere under `results`."""
    found: list[tuple[str, Path]] = []
    for file in results.rglob("*.json"):
        try:
            found.append((_read(file).time, file.parent))
        except RecordError:
            continue  # such as those of scripts/gpu_check.sh
    if not found:
        raise RecordError(
            f"{results}: no records here; vae-fast bench makes one, --out names a folder of them"
        )
    return max(found)[1]


def _read(file: Path) -> Record:
    try:
        raw = json.loads(file.read_text())
        return Record(
            conditions=raw["conditions"],
            meaning=raw["allocator"],
            time=raw["machine"]["time"],
            commits=(raw["machine"]["commit"],),
            command=raw["command"],
            versions=raw["process"]["versions"],
            cases=tuple(_case(c) for c in raw["comparisons"]),
        )
    except OSError as error:
        raise RecordError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecordError(f"{file}: not a record of the benchmarks") from None


def _case(raw: Any) -> Case:
    timed = {p["provider"]: p for p in raw["providers"] if "skipped" not in p}
    parts = {
        name: _timed(f"{raw['title']}, {name} alone", floors, {n: p["parts"][name] for n, p in timed.items()})
        for name, floors in raw["parts"].items()
    }
    return replace(_timed(raw["title"], raw, timed), parameters=raw["case"], parts=parts)


def _timed(title: str, floors: Any, timed: Mapping[str, Any]) -> Case:
    timings = {provider: Timing.read(raw) for provider, raw in timed.items()}
    return Case(title, timings, floors["floor_s"], floors["noise_floor_s"])
