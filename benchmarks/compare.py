"""`vae-fast bench --compare A B`: what got slower and faster from A to B."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from .records import MACHINE, Case, Record, RecordError, load
from .timing import Timing
from .verdict import MARGIN, times


@dataclass(frozen=True)
class Change:
    title: str
    before: Timing
    after: Timing
    others: float | None  # what the others' times changed by, in the middle: the machine, not vae_fast

    @property
    def factor(self) -> float:
        return self.after.median / self.before.median

    @property
    def result(self) -> str:
        """Beyond noise: the medians differ by more than the margin, and the interquartile ranges do not meet."""
        if self.factor > 1 + MARGIN and self.after.low > self.before.high:
            return "slower"
        if self.factor < 1 / (1 + MARGIN) and self.after.high < self.before.low:
            return "faster"
        return "same"


def changes(before: Record, after: Record) -> list[Change]:
    """Of vae_fast, in every case that is in both. RecordError where the machines differ."""
    for name in MACHINE:
        a, b = before.conditions[name], after.conditions[name]
        if a != b:
            raise RecordError(f"the records cannot be compared: {name} is {a} in A and {b} in B")
    old = {case.title: case for case in before.cases_and_parts}
    return [
        Change(case.title, old[case.title].ours, case.ours, _drift(old[case.title], case))  # type: ignore[arg-type]
        for case in after.cases_and_parts
        if case.ours and case.title in old and old[case.title].ours
    ]


def _drift(before: Case, after: Case) -> float | None:
    old = before.others
    factors = [t.median / old[name].median for name, t in after.others.items() if name in old]
    return math.exp(statistics.mean(math.log(f) for f in factors)) if factors else None


def run_compare(a: Path, b: Path) -> int:
    before, after = load(a), load(b)
    allocators = [name for name in before if name in after]
    if not allocators:
        raise RecordError(
            f"the records cannot be compared: A has the allocator {_list(before)}, B {_list(after)}"
        )
    regressions = 0
    for name in allocators:
        found = changes(before[name], after[name])
        print(f"A: {before[name].describe()}\nB: {after[name].describe()}")
        for change in sorted(found, key=lambda c: -c.factor):
            if change.result != "same":
                print(_line(change))
        count = {r: sum(c.result == r for c in found) for r in ("slower", "faster", "same")}
        titles = ({c.title for c in r[name].cases_and_parts} for r in (before, after))
        missing = len(set.symmetric_difference(*titles))
        print(
            f"{count['slower']} slower, {count['faster']} faster, {count['same']} the same within noise",
            end="",
        )
        print(f"; {missing} in one record alone" if missing else "")
        regressions += count["slower"]
    return 1 if regressions else 0


def _line(change: Change) -> str:
    before, after = 1e3 * change.before.median, 1e3 * change.after.median
    others = f", the others {times(change.others)}" if change.others else ""
    took = f"{change.result} {times(change.factor):>6} the time"
    return f"{took}  {change.title}: {before:.3g} ms -> {after:.3g} ms{others}"


def _list(records: dict[str, Record]) -> str:
    return " and ".join(records)
