"""What the integrations gain, and that they change no number: writes docs/integrations.md.

    make integrations                              in an environment of its own
    python -m benchmarks.integrations --quick      tiny sizes, numbers alone; nothing is written

With and without the patch take turns in one process. Numbers are compared with torch's own noise (noise="torch"), time
and memory are taken with vae_fast's.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .harness import peak_bytes
from .integration_cases import CASES, Case, Work
from .machine import cpu_name, version_of
from .settings import ROOT

TOLERANCE = 1e-4  # of loss and gradients, relative: a whole network in float32 lies between
SECONDS = 0.5  # of a piece, each turn
TEXT = ROOT / "benchmarks" / "integrations.head.md"


@dataclass
class Row:
    """Of a case: differences, and (without, with the patch) seconds by round and peak bytes."""

    case: Case
    loss: float
    gradient: float
    piece: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    epoch: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    steps: int | None = None
    piece_bytes: list[int | None] = field(default_factory=list)
    epoch_bytes: list[int | None] = field(default_factory=list)

    def gain(self, of: str) -> float | None:
        """The median over the rounds of theirs over ours."""
        theirs, ours = getattr(self, of)
        return statistics.median(a / b for a, b in zip(theirs, ours, strict=True)) if ours else None

    def limit(self) -> float | None:
        """How many times as fast an epoch would be if what replaces the piece took no time."""
        if self.steps is None or not self.epoch[0]:
            return None
        theirs, ours = (statistics.median(t) for t in self.epoch)
        return theirs / (ours - self.steps * statistics.median(self.piece[1]))


def compare(case: Case, work: Work) -> Row:
    """The largest differences of one step, relative to the loss and to each parameter's largest gradient; to a
    hundredth of the largest of all where that is more, as a bias before a batch norm has none but rounding."""
    theirs = work.numbers()
    with work.patch(noise="torch"):
        ours = work.numbers()

    least = 1e-2 * max(float(t.abs().max()) for t in theirs[1:])

    def difference(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max()) / max(least, float(a.abs().max()))

    by = [difference(a, b) for a, b in zip(theirs, ours, strict=True)]
    row = Row(case, by[0], max(by[1:]), steps=work.steps)
    if not max(by) <= TOLERANCE:
        raise SystemExit(
            f"{case.library}, {case.title}: loss differs by {row.loss:.1e}, gradients {row.gradient:.1e}"
        )
    return row


def measure(row: Row, work: Work, rounds: int) -> None:
    contexts: tuple[Callable[[], Any], ...] = (contextlib.nullcontext, work.patch)
    for _ in range(rounds):
        for i, context in enumerate(contexts):
            with context():
                row.piece[i].append(_time(work.piece))
                if work.epoch is not None:
                    row.epoch[i].append(work.epoch())
    for context in contexts:
        with context():
            row.piece_bytes.append(peak_bytes(work.piece))
            row.epoch_bytes.append(None if work.epoch is None else peak_bytes(work.epoch))


def _time(step: Callable[[], Any]) -> float:
    """The median of some runs, after one that is not timed."""
    step()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while not times or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def facts() -> list[str]:
    """What the libraries cannot do at all. Raises where it is not so."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from scvi.distributions import ZeroInflatedNegativeBinomial

    from vae_fast.integrations import diffusers, scvi

    half = torch.full((1, 64, 128, 128), 1.5, dtype=torch.float16)
    theirs = DiagonalGaussianDistribution(half).kl().item()
    with diffusers.patch():
        ours = DiagonalGaussianDistribution(half).kl().item()
    exact = DiagonalGaussianDistribution(half.double()).kl().item()
    assert theirs == float("inf") and abs(ours / exact - 1) < 1e-5
    found = [
        f"diffusers: kl() of float16 parameters 1 × 64 × 128 × 128, all 1.5: {theirs} without, {ours:.0f} with."
    ]

    def loss(mu: Tensor, theta: Tensor, pi: Tensor, x: Tensor) -> Tensor:
        px = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi)
        total: Tensor = -px.log_prob(x).sum()
        return total

    arguments = (torch.ones(4, 8), torch.ones(8), torch.zeros(4, 8), torch.ones(4, 8))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compiled(*arguments)
            raise SystemExit("scvi-tools' ZINB compiles in one graph now: change the text")
        except torch._dynamo.exc.Unsupported:
            torch._dynamo.reset()
        with scvi.patch():
            torch.testing.assert_close(compiled(*arguments), loss(*arguments))
    return [*found, "scvi-tools: torch.compile(fullgraph=True) of ZINB: breaks without, one graph with."]


def report(rows: list[Row], told: list[str]) -> str:
    head = (
        "library", "what", "lines", "loss", "gradients", "piece, ms", "", "epoch, s", "", "at most", "piece, MB",
        "epoch, MB",
    )  # fmt: skip
    table = [head, ("---",) * len(head), *(_cells(row) for row in rows)]
    names = dict.fromkeys([*(row.case.library for row in rows), "lightning", "torch"])
    versions = ", ".join(f"{name} {version_of(name)}" for name in names)
    lines = [
        TEXT.read_text().rstrip(),
        "",
        f"Written by `make integrations` on {time.strftime('%Y-%m-%d')}: {cpu_name()}, "
        f"{torch.get_num_threads()} threads, {versions}. Synthetic data, float32.",
        "",
        *(f"| {' | '.join(row)} |" for row in table),
        "",
        *(f"- {line}" for line in told),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    def pair(of: str, scale: float) -> tuple[str, str]:
        theirs, ours = getattr(row, of)
        if not ours:
            return "", ""
        medians = (scale * statistics.median(t) for t in (theirs, ours))
        return " → ".join(f"{m:.3g}" for m in medians), f"{row.gain(of):.2f}×"

    def megabytes(peaks: list[int | None]) -> str:
        return " → ".join(f"{p / 1e6:,.0f}" for p in peaks if p is not None)

    limit = row.limit()
    return (
        f"{row.case.library} {version_of(row.case.library)}", row.case.title, "1",
        f"{row.loss:.0e}", f"{row.gradient:.0e}", *pair("piece", 1e3), *pair("epoch", 1),
        "" if limit is None else f"{limit:.2f}×", megabytes(row.piece_bytes), megabytes(row.epoch_bytes),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.integrations", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, numbers alone")
    parser.add_argument("--only", default="", help="of these libraries or titles")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "integrations.md")
    options = parser.parse_args()
    rows, missed = [], []
    for case in CASES:
        if options.only not in f"{case.library} {case.title}":
            continue
        work = case.make(options.quick)
        row = compare(case, work)
        rows.append(row)
        if not options.quick:
            measure(row, work, options.rounds)
        print(" | ".join(_cells(row)), flush=True)
        gain = row.gain("epoch" if case.of_epoch else "piece")
        if case.wanted is not None and gain is not None and gain < case.wanted:
            missed.append(f"{case.library}, {case.title}: {gain:.2f}×, wanted {case.wanted}×")
    told = facts() if not options.only else []
    print("\n".join([*told, *missed]))
    if not options.quick and not options.only:
        options.out.write_text(report(rows, told))
        print(f"written: {options.out}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
