"""Where vae_fast wins, ties and loses in one record."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from .records import Case, Record
from .timing import Timing

MARGIN = 0.05  # a difference of less is called a tie: it is not what the same code repeats from run to run


@dataclass(frozen=True)
class Meeting:
    """vae_fast and one other provider in one case."""

    title: str
    provider: str
    factor: float  # the other's time over vae_fast's
    result: str  # "wins", "ties", "loses": what vae_fast does


def meet(title: str, ours: Timing, provider: str, other: Timing) -> Meeting:
    """Beyond the margin, and in at least three rounds of four: or else a tie."""
    low, factor, high = other.times_slower_than(ours)
    result = "ties"
    if factor >= 1 + MARGIN and low > 1:
        result = "wins"
    elif factor <= 1 / (1 + MARGIN) and high < 1:
        result = "loses"
    return Meeting(title, provider, factor, result)


def meetings(cases: Iterable[Case]) -> list[Meeting]:
    return [
        meet(case.title, case.ours, *other) for case in cases if case.ours for other in case.others.items()
    ]


def verdict(record: Record) -> list[str]:
    """A line for each provider, then one for each loss, of a part too, and each tie."""
    found, parts = meetings(record.cases), meetings(record.cases_and_parts)
    lines = []
    for provider in dict.fromkeys(m.provider for m in found):
        theirs = [m for m in found if m.provider == provider]
        count = {r: sum(m.result == r for m in theirs) for r in ("wins", "ties", "loses")}
        factors = [m.factor for m in theirs]
        lines.append(
            f"against {provider}: wins {count['wins']}, ties {count['ties']}, loses {count['loses']} of {len(theirs)}; "
            f"{times(statistics.median(factors))} in the middle, {times(min(factors))} to {times(max(factors))}"
        )
    lines += [
        f"loses: {times(m.factor)} {m.provider}'s speed in {m.title}" for m in parts if m.result == "loses"
    ]
    lines += [
        f"ties:  {times(m.factor)} {m.provider}'s speed in {m.title}" for m in found if m.result == "ties"
    ]
    return lines


def times(factor: float) -> str:
    return f"{factor:.2f}x" if factor < 2 else f"{factor:.1f}x"
