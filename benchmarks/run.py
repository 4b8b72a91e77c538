"""Runs the suite, `pytest benchmarks`, with a bar, and says how it went."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from importlib import util
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vae_fast.training.errors import TrainingError

from . import settings
from .machine import describe_conditions, folder_of
from .records import load, load_files, newest
from .settings import PACKAGE
from .verdict import verdict


def run_benchmarks(allocators: list[str], *, quick: bool, only: str | None, out: Path | None) -> int:
    _check(allocators)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without ending pytest
    console = Console(highlight=False, soft_wrap=True)
    if not quick:
        console.print(
            "Each provider has a process of its own and they take turns: minutes. Leave the machine idle."
        )
    if out is None and not quick:
        out = folder_of(describe_conditions())
    told = {"quick": int(quick), "command": _command(allocators, only)}
    if out is not None:
        told["results"] = out.resolve()
    since, done = time.time(), 0
    for allocator in allocators:
        done += _run_suite(console, told | {"allocator": allocator}, only)
    if quick:
        console.print(f"{done} ran, and every provider was right; nothing was timed (--quick)")
        return 0
    assert out is not None
    written = [f for f in sorted(out.glob("*.json")) if f.stat().st_mtime >= since - 1]
    for record in load_files(written).values():
        console.print(f"\n{record.describe()}", markup=False)
        for line in verdict(record):
            console.print(line, markup=False)
    console.print(f"written: {_shown(out)}/: {', '.join(f.name for f in written)}", markup=False)
    return 0


def run_report(folder: Path | None) -> int:
    from .markdown import write_report

    folder = folder or newest(settings.RECORDS)
    for path in write_report(list(load(folder).values()), settings.DOCS):
        print(_shown(path))
    return 0


def _check(allocators: list[str]) -> None:
    for module in ("pytest", "pytest_benchmark"):
        if util.find_spec(module) is None:
            raise TrainingError(
                f"{module} is not installed; the benchmarks take: pip install 'vae_fast[train,bench]'"
            )
    if "tuned" in allocators and not _is_glibc():
        raise TrainingError("--allocator tuned sets up glibc's malloc, which this system does not have")


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, ValueError, OSError):
        return False


def _command(allocators: list[str], only: str | None) -> str:
    allocator = "both" if len(allocators) == 2 else allocators[0]
    options = ([f"--allocator {allocator}"] if allocator != "default" else []) + (
        [f"--only {shlex.quote(only)}"] if only else []
    )
    return " ".join(["vae-fast bench", *options])


def _run_suite(console: Console, told: dict[str, Any], only: str | None) -> int:
    """Runs all benchmarks that `only` matches; their number. TrainingError for the first that failed."""
    command = [sys.executable, "-m", "pytest", str(PACKAGE), "--benchmark-disable", "-q"]
    # No setting of a project that the package happens to be installed in, and nothing written beside it.
    command += ["-c", os.devnull, "--rootdir", str(PACKAGE), "--confcutdir", str(PACKAGE)]
    command += ["-o", "python_files=bench_*.py", "-p", "no:cacheprovider"]
    command += ["-k", only] if only else []
    # Redrawn once a second at most: the bar shares the machine with what is measured.
    bar = Progress(
        TextColumn(f"{told['allocator']} allocator"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        refresh_per_second=1,
        disable=not console.is_terminal,
    )
    with tempfile.TemporaryDirectory() as scratch, bar, Path(scratch, "output").open("w+") as output:
        events = Path(scratch, "events")
        events.touch()
        process = subprocess.Popen(
            command,
            cwd=PACKAGE.parent,
            env=settings.environment(**told, events=events),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        task = bar.add_task("collecting", total=None)
        failed: list[str] = []
        done, pending, running = 0, "", True
        try:
            with events.open() as file:
                while running:
                    time.sleep(0.5)
                    running = process.poll() is None  # before reading: what comes last is read, too
                    *whole, pending = (pending + file.read()).split("\n")
                    done += sum(_show(json.loads(line), console, bar, task, failed) for line in whole)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.strip()]
    if process.returncode == 5:
        raise TrainingError(f"--only is {only!r}: no benchmark's name matches")
    if failed or process.returncode:
        errors = [line for line in lines if line.startswith(("ERROR", "E "))] or lines[-1:]
        what = (
            failed[0] if failed else f"pytest ended with status {process.returncode}: {' '.join(errors[:1])}"
        )
        raise TrainingError(f"{len(failed) or 'the'} benchmark(s) failed; {what}")
    return done


def _show(event: dict[str, Any], console: Console, bar: Progress, task: Any, failed: list[str]) -> int:
    """1 if the event says that a benchmark was done."""
    if event["event"] == "collected":
        bar.update(task, total=event["count"])
    elif event["event"] == "start":
        bar.update(task, description=event["name"])
    else:
        bar.advance(task)
        if event["table"]:
            console.print(f"\n{event['table']}", markup=False)
        if event["outcome"] == "failed":
            failed.append(f"{event['name']}: {event['error'].strip().splitlines()[0]}")
        return int(event["outcome"] != "skipped")
    return 0


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
