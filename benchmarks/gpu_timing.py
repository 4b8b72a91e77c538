"""How work on a GPU is timed: the device's own time for a replayed CUDA graph, and what the host spends on a call.

A graph holds the work many times over, each time on another set of buffers, more than three times the L2 cache in all,
so that nothing is found there that the last call left. One replay is timed by events: the host's share and the gaps
between launches from Python are not in it. Providers take turns, so that a changing clock meets all of them.

On a CPU the same functions run the calls one by one: that tries the code, and measures nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], Any]
LEAST_CALLS = 8  # of a replay: events tick in half microseconds
MOST_SETS = 64


def l2_bytes(device: str) -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 1 << 14


def sets_past_cache(bytes_of_a_set: int, device: str) -> int:
    """How many sets of buffers make three L2 caches; at most MOST_SETS, which small work does not need to leave."""
    return max(2, min(MOST_SETS, 3 * l2_bytes(device) // max(1, bytes_of_a_set) + 1))


class Replay:
    """The calls, one after the other, as one graph. `hold` is what must outlive it."""

    def __init__(self, calls: Sequence[Call], stream: Any, hold: Any = None) -> None:
        self.calls, self.hold, self.graph = list(calls), hold, None
        if stream is None:
            return
        self.calls *= -(-LEAST_CALLS // len(calls))
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[:2]:
                call()
        stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            for call in self.calls:
                call()

    def seconds(self) -> float:
        """Of one call."""
        if self.graph is None:
            start = time.perf_counter()
            for call in self.calls:
                call()
            return (time.perf_counter() - start) / len(self.calls)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(100_000)  # the launch is queued before the clock starts
        before.record()
        self.graph.replay()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3 / len(self.calls)


def interleaved(replays: dict[str, Replay], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call, for each provider and round; a round before them warms up."""
    times: dict[str, list[float]] = {name: [] for name in replays}
    for i in range(-1, rounds):
        for name, replay in replays.items():
            seconds = replay.seconds()
            if i >= 0:
                times[name].append(seconds)
    return times


def summary(times: Sequence[float]) -> dict[str, Any]:
    low, median, high = (
        statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else (times[0],) * 3
    )
    return {"median_s": median, "quartiles_s": [low, high], "rounds": len(times)}


def host_seconds(call: Call, device: str, repeats: int, rounds: int = 5) -> float:
    """Wall time of one eager call in a row of them, the device drained before and after: the median over rounds."""
    times = []
    for _ in range(rounds):
        for _ in range(3):
            call()
        _drain(device)
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        _drain(device)
        times.append((time.perf_counter() - start) / repeats)
    return statistics.median(times)


def launches(call: Call, device: str) -> int | None:
    """What one call puts on the device: kernels, copies and memsets."""
    if device != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        _drain(device)
    events = profile.events() or []
    return sum(event.device_type.name == "CUDA" for event in events) or None


def _drain(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
