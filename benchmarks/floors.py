"""What a pass over the data has to do at least, and how fast this machine does it."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Least:
    """What one pass over the data has to do at least."""

    bytes: int  # that it reads and writes
    normals: int = 0  # random numbers that it makes

    def __add__(self, other: Least) -> Least:
        return Least(self.bytes + other.bytes, self.normals + other.normals)


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
