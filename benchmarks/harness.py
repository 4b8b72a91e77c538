"""How every benchmark here measures: the same work by several providers, in one run, under the same conditions.

Each provider lives in its own process, so no library's thread pool, allocator or compiler cache touches another's,
and a process can be set up differently ("as torch leaves it" or "as `vae-fast train` sets it up"). The processes take
turns in rounds, so a machine that slows down slows everybody. Before anything is timed, every provider's output is
checked against float64. A copy of large arrays takes its turn too: the bandwidth that a floor is counted in.

A step is timed alone, from its call until its results exist and have been freed again: a user's outputs are freshly
allocated, and on a CPU the page faults of a large one cost more than the arithmetic. Parts of the work, such as forward
and backward, are timed alone in a turn of their own. Median and quartiles are over all timed steps. The ratio of two
providers is the median over rounds of the quotient of their medians in that round.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import pickle
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

from . import allocator, settings
from .comparison import Case, Comparison, Result, Times, save
from .floors import Copies, Least, Noise
from .machine import describe_process
from .work import Prepare, Work

MAX_STEPS = 300  # in a turn
HOST = ": the host's time alone"  # of a case whose work is nothing


def size_of(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def case_id(value: str | tuple[int, ...]) -> str:
    """What pytest calls a value of a case."""
    return value if isinstance(value, str) else size_of(value).replace(" ", "")


def bytes_of(dtype: str) -> int:
    import torch

    itemsize: int = getattr(torch, dtype).itemsize
    return itemsize


@dataclass(frozen=True)
class Provider:
    """One way to do the work."""

    name: str
    build: Callable[[Case], Work]  # called in the provider's own process
    requires: tuple[str, ...] = ()  # modules without which the provider is left out
    # set the process up as `vae-fast train` does, unless all have the same allocator
    train_process: bool = False

    def missing(self) -> list[str]:
        return [module for module in self.requires if util.find_spec(module) is None]


def _serve(connection: Any, provider: Provider, case: Case) -> None:
    """A provider's process: build, check, then time `n` steps whenever asked."""
    try:
        import torch  # noqa: F401  # takes seconds, all processes side by side; what follows, one after the other

        connection.recv()
        if provider.train_process and settings.ALLOCATOR == "default":
            from vae_fast.training.malloc import set_up_process

            set_up_process()
        work = provider.build(case)
        for i in range(3):  # compiles, fills caches; each is checked
            work.check(i, work.step(i))
        work.check_parts(0)
        cold = allocator.give_back()  # the checks take several times what a step does
        connection.send(describe_process())
        steps = itertools.count(3)
        while (n := connection.recv()) is not None:
            if n == 0:
                connection.send(peak_bytes(partial(work.step, next(steps))))
                continue
            for i in itertools.islice(steps, allocator.WARM_UP * cold):
                work.step(i)
            times = [_times(lambda i: partial(work.step, i), n, steps)]
            times += [_times(prepare, (n + 1) // 2, steps) for prepare in work.parts.values()]
            cold = allocator.give_back(if_scarce=True)
            connection.send(dict(zip(("", *work.parts), times, strict=True)))
    except Exception:
        connection.send(traceback.format_exc())


def _times(prepare: Prepare, n: int, steps: Iterator[int]) -> list[float]:
    times = []
    for k in range(-(n // 4), n):  # a step that takes a whole turn needs no warm-up
        call = prepare(next(steps))
        start = time.perf_counter()
        outputs = call()
        del outputs
        elapsed = time.perf_counter() - start
        del call  # before the next one is prepared: it may hold a graph
        if k >= 0:
            times.append(elapsed)
    return times


def peak_bytes(step: Callable[[], Any]) -> int | None:
    """The most memory that a step holds at once, above what there is without it; None where the system cannot tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None

    def read(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) << 10

    gc.collect()
    if "vae_fast" in sys.modules:  # which keeps memory of its own for results
        from vae_fast.backends.native import cpu

        cpu.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    before = read("VmRSS")
    reset.write_text("5")  # the peak starts over
    outputs = step()
    del outputs
    return read("VmHWM") - before


def _try(title: str, case: Case, providers: list[Provider]) -> Comparison:
    """Each provider once, in this process: does it still run, and is it right?"""
    results = []
    for provider in providers:
        results.append(Result(provider.name))
        if missing := provider.missing():
            results[-1].skipped = f"{', '.join(missing)} not installed"
            continue
        work = pickle.loads(pickle.dumps(provider)).build(case)  # as it travels to a process of its own
        start = time.perf_counter()
        work.check(0, work.step(0))
        results[-1].rounds.append([time.perf_counter() - start])
        work.check_parts(0)
    return Comparison(title, case, results)


class _Worker:
    def __init__(self, provider: Provider, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self.result = Result(provider.name)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, provider, case), daemon=True)
        with allocator.environment():
            self.process.start()
        theirs.close()
        self.steps = 1

    def build(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # then there is nothing to receive either
            self.connection.send("build")
        self.result.process = self._receive()

    def _receive(self) -> Any:
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError(f"{self.result.provider}: its process ended; out of memory?") from None
        if isinstance(message, str):
            raise RuntimeError(f"{self.result.provider}:\n{message}")
        return message

    def turn(self) -> dict[str, list[float]]:
        """Seconds of each step and, by name, of each part's."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(self.steps)
        times: dict[str, list[float]] = self._receive()
        return times

    def take_turn(self) -> None:
        times = self.turn()
        self.result.rounds.append(times.pop(""))
        for name, seconds in times.items():
            self.result.parts.setdefault(name, Times()).rounds.append(seconds)

    def peak_bytes(self) -> int | None:
        self.connection.send(0)
        peak: int | None = self._receive()
        return peak

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
    least: dict[str, Least] | None = None,
    rounds: int = 12,
    turn_seconds: float = 0.4,
) -> Comparison:
    """Run `case` with every provider, interleaved; print and return what was measured.

    `least`: what each pass over the data, such as forward and backward, has to do at least.
    """
    if settings.QUICK:
        return _try(title, case, providers)
    results: list[Result] = []
    workers: list[_Worker] = []
    copies = Copies() if least else None
    noise = Noise() if any(each.normals for each in (least or {}).values()) else None
    try:
        for provider in providers:
            if missing := provider.missing():
                results.append(Result(provider.name, skipped=f"{', '.join(missing)} not installed"))
                continue
            workers.append(_Worker(provider, case))
            results.append(workers[-1].result)
        for worker in workers:
            worker.build()
        for worker in workers:
            worker.steps = max(1, min(MAX_STEPS, round(turn_seconds / statistics.median(worker.turn()[""]))))
        for _ in range(rounds):
            for worker in workers:
                worker.take_turn()
            for clock in (copies, noise):
                if clock:
                    clock.take_turn()
        # The tuned allocator keeps what is freed, which nobody can tell from what is needed.
        if settings.ALLOCATOR == "default":
            for worker in workers:
                worker.result.peak_bytes = worker.peak_bytes()
    finally:
        for worker in workers:
            worker.stop()
    comparison = Comparison(
        title,
        case,
        results,
        least or {},
        copy_bandwidth=copies.bandwidth if copies else None,
        normals_per_second=noise.normals_per_second if noise else None,
    )
    print("\n" + comparison.table(), flush=True)
    return comparison


class Suite:
    """The comparisons of one file. Their record is written after each, so that none is lost with a later one."""

    def __init__(self, name: str, ours: Callable[[Case], Work]) -> None:
        self.name, self.ours = name, ours
        self.done: list[Comparison] = []

    def add(self, comparison: Comparison, benchmark: Any, rounds: int | None = None) -> None:
        """Also gives vae_fast's step to pytest-benchmark, for a table of its own."""
        self.done.append(comparison)
        save(self.name, self.done)
        benchmark.extra_info.update({r.provider: r.timing.median for r in comparison.timed})
        # which only counts where it is wanted: inputs take long to make
        step = (lambda i: None) if benchmark.disabled else self.ours(comparison.case).step
        if rounds is None:
            benchmark(step, 0)
        else:
            benchmark.pedantic(step, (0,), rounds=rounds)
