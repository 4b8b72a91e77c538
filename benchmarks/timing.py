"""What is kept of a provider's times. Providers' processes import this: nothing of vae_fast, nothing of torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OURS = "vae_fast"


@dataclass(frozen=True)
class Timing:
    """One provider's time for one case, in seconds."""

    median: float  # of all timed steps, and their quartiles
    low: float
    high: float
    steps: int
    rounds: tuple[float, ...]  # median of each round; in a round, all providers ran one after the other
    peak_bytes: int | None = None  # of one step, above its inputs

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]], peak_bytes: int | None = None) -> Timing:
        """From the time of every step, by round."""
        steps = [t for times in rounds for t in times]
        median = statistics.median(steps)
        low, _, high = statistics.quantiles(steps, n=4) if len(steps) > 1 else (median,) * 3
        return cls(median, low, high, len(steps), tuple(map(statistics.median, rounds)), peak_bytes)

    @classmethod
    def read(cls, raw: Any) -> Timing:
        low, high = raw["quartiles_s"]
        return cls(
            raw["median_s"], low, high, raw["steps"], tuple(raw["round_medians_s"]), raw.get("peak_bytes")
        )

    def written(self) -> dict[str, Any]:
        return {
            "median_s": self.median,
            "quartiles_s": (self.low, self.high),
            "steps": self.steps,
            "round_medians_s": [float(f"{t:.5g}") for t in self.rounds],
        } | ({} if self.peak_bytes is None else {"peak_bytes": self.peak_bytes})

    def times_slower_than(self, other: Timing) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the quotient, over the rounds."""
        quotients = [mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True)]
        if len(quotients) == 1:
            return quotients[0], quotients[0], quotients[0]
        low, median, high = statistics.quantiles(quotients, n=4, method="inclusive")
        return low, median, high
