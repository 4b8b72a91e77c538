"""How every benchmark here measures: the same work by several providers, in one run, under the same conditions.

Each provider lives in its own process, so no library's thread pool, allocator or compiler cache touches another's,
and a process can be set up differently ("as torch leaves it" or "as `vae-fast train` sets it up"). The processes take
turns in rounds, so a machine that slows down slows everybody. Before anything is timed, every provider's output is
checked against float64.

A step is timed alone, from its call until its results exist and have been freed again: a user's outputs are freshly
allocated, and on a CPU the page faults of a large one cost more than the arithmetic. Median and quartiles are over all
timed steps. The ratio of two providers is the median over rounds of the quotient of their medians in that round.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

OURS = "vae_fast"
QUICK = os.environ.get("VAE_FAST_BENCH_QUICK", "") not in ("", "0")  # tiny sizes, each provider once: does it run?
RESULTS = Path(os.environ.get("VAE_FAST_BENCH_RESULTS", Path(__file__).parent / "results" / "cpu"))

Case = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a provider's process runs: `step(i)` does the work once, `check(i, outputs)` raises if it was done wrong."""

    step: Callable[[int], Any]
    check: Callable[[int, Any], None]


@dataclass(frozen=True)
class Provider:
    name: str
    build: Callable[[Case], Work]  # called in the provider's own process
    requires: tuple[str, ...] = ()  # modules without which the provider is left out
    train_process: bool = False  # set the process up as `vae-fast train` does

    def missing(self) -> list[str]:
        return [module for module in self.requires if util.find_spec(module) is None]


@dataclass
class Result:
    provider: str
    rounds: list[list[float]] = field(default_factory=list)  # seconds of every timed step, by round
    process: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None

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
        return statistics.median(statistics.median(mine) / statistics.median(theirs) for mine, theirs in pairs)


@dataclass
class Comparison:
    title: str
    case: Case
    results: list[Result]
    bytes_moved: int | None = None  # the fewest bytes this work can read and write
    copy_bandwidth: float | None = None  # bytes per second

    def __getitem__(self, provider: str) -> Result:
        return next(r for r in self.results if r.provider == provider)

    def ratio(self, provider: str) -> float:
        """How many times longer `provider` takes than vae_fast."""
        return self[provider].times_slower_than(self[OURS])

    def table(self) -> str:
        timed = [r for r in self.results if r.rounds]
        base = next((r for r in timed if r.provider == OURS), timed[0])
        head = f"{'provider':<24}{'median ms':>12}{'quartiles':>20}{'x ' + base.provider:>14}"
        rows = [self.title, head + (f"{'% of copy':>12}" if self.copy_bandwidth else "")]
        for r in timed:
            low, high = (f"{1e3 * q:.3f}" for q in r.quartiles)
            row = f"{r.provider:<24}{1e3 * r.median:>12.3f}{low + ' - ' + high:>20}{r.times_slower_than(base):>14.2f}"
            if self.copy_bandwidth and self.bytes_moved:
                row += f"{100 * self.bytes_moved / r.median / self.copy_bandwidth:>12.0f}"
            rows.append(row)
        rows += [f"{r.provider:<24}left out: {r.skipped}" for r in self.results if r.skipped]
        return "\n".join(rows)

    def record(self) -> dict[str, Any]:
        out: dict[str, Any] = {"title": self.title, "case": self.case, "bytes_moved": self.bytes_moved}
        out["copy_bandwidth"] = self.copy_bandwidth
        out["providers"] = [
            {"provider": r.provider, "skipped": r.skipped}
            if r.skipped
            else {
                "provider": r.provider,
                "median_s": r.median,
                "quartiles_s": r.quartiles,
                "times_vae_fast": self.ratio(r.provider) if any(o.provider == OURS and o.rounds for o in self.results) else None,
                "process": r.process,
                "rounds_s": r.rounds,
            }
            for r in self.results
        ]
        return out


def describe_process() -> dict[str, Any]:
    """Versions, threads and instruction set, as the provider's own process sees them."""
    import torch

    versions = {}
    for name in ("torch", "jax", "jaxlib", "numpy", "vae_fast"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "KMP_", "MALLOC_", "VAE_FAST_", "XLA_"))},
    }


def describe_machine() -> dict[str, Any]:
    def git(*args: str) -> str:
        done = subprocess.run(("git", *args), cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    try:
        import vae_fast

        ours: Any = vae_fast.info()
    except ImportError:
        ours = None
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": git("rev-parse", "HEAD"),
        "changed_since_commit": bool(git("status", "--porcelain", "--untracked-files=no")),
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "vae_fast": ours,
    }


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes per second (read and written) of a copy between two arrays that already exist: the speed of light here."""
    import torch

    source = torch.ones(megabytes << 18)
    target = torch.zeros_like(source)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(times)


def _serve(connection: Any, provider: Provider, case: Case) -> None:
    """A provider's process: build, check, then time `n` steps whenever asked."""
    try:
        if provider.train_process:
            from vae_fast.training.process import set_up_process

            set_up_process()
        work = provider.build(case)
        for i in range(3):  # compiles, fills caches; each is checked
            work.check(i, work.step(i))
        connection.send(describe_process())
        i = 3
        while (n := connection.recv()) is not None:
            times = []
            for k in range(-max(1, n // 4), n):
                start = time.perf_counter()
                outputs = work.step(i)
                del outputs
                elapsed = time.perf_counter() - start
                if k >= 0:
                    times.append(elapsed)
                i += 1
            connection.send(times)
    except Exception:
        connection.send(traceback.format_exc())


class _Worker:
    def __init__(self, provider: Provider, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self.result = Result(provider.name)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, provider, case), daemon=True)
        self.process.start()
        theirs.close()
        self.result.process = self._receive()
        self.steps = 1

    def _receive(self) -> Any:
        try:
            message = self.connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.result.provider}: its process ended") from None
        if isinstance(message, str):
            raise RuntimeError(f"{self.result.provider}:\n{message}")
        return message

    def turn(self) -> list[float]:
        self.connection.send(self.steps)
        times: list[float] = self._receive()
        return times

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(None)
        self.process.join(10)
        self.process.kill()


def compare(
    title: str,
    case: Case,
    providers: list[Provider],
    *,
    bytes_moved: int | None = None,
    rounds: int = 12,
    turn_seconds: float = 0.4,
) -> Comparison:
    """Run `case` with every provider, interleaved; print and return what was measured."""
    results: list[Result] = []
    workers: list[_Worker] = []
    try:
        for provider in providers:
            if missing := provider.missing():
                results.append(Result(provider.name, skipped=f"{', '.join(missing)} not installed"))
                continue
            workers.append(_Worker(provider, case))
            results.append(workers[-1].result)
        if not QUICK:
            for worker in workers:
                worker.steps = max(3, min(2000, round(turn_seconds / statistics.median(worker.turn()))))
        for _ in range(1 if QUICK else rounds):
            for worker in workers:
                worker.result.rounds.append(worker.turn())
    finally:
        for worker in workers:
            worker.stop()
    bandwidth = copy_bandwidth(8 if QUICK else 256) if bytes_moved else None
    comparison = Comparison(title, case, results, bytes_moved, bandwidth)
    print("\n" + comparison.table(), flush=True)
    return comparison


def save(name: str, comparisons: list[Comparison]) -> Path | None:
    """Write `<name>.json`: machine, commit, and every timed step. A quick run measures nothing and writes nothing."""
    if QUICK:
        return None
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {"machine": describe_machine(), "comparisons": [c.record() for c in comparisons]}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")
    return path
