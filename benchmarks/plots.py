"""The report's plots. Providers differ in marker and in lightness: no colour is needed to read them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .records import Case, Record
from .timing import OURS

# Okabe and Ito's colours, which the colour-blind tell apart; light and dark also in grey.
STYLES = {  # colour, marker
    OURS: ("#000000", "o"),
    "eager": ("#D55E00", "s"),
    "torch.compile": ("#0072B2", "^"),
    "jax.jit": ("#E69F00", "D"),
}
MORE = (
    *(("#009E73", "v"), ("#CC79A7", "P"), ("#56B4E9", "X"), ("#999999", "*")),
    *(("#F0E442", "<"), ("#009E73", ">"), ("#CC79A7", "p"), ("#56B4E9", "h")),
)
MEMORY = 250e6  # bytes: a case in which nobody needs as much is in the table alone


def draw_plots(record: Record, folder: Path) -> dict[str, Path]:
    """Writes the plots that the record has numbers for: {what it shows: file}."""
    import matplotlib as mpl

    mpl.use("Agg")  # no display
    allocator = record.conditions["allocator"]
    suffix = "" if allocator == "default" else f".{allocator}"
    cases = [case for case in record.cases if case.ours]
    drawn: dict[str, Path] = {}
    steps = [c for c in cases if c.others and c.parameters.get("model") == "mlp"]
    for name, text, draw, drawable in (
        ("batch", "Times faster than each provider, by batch, MLP training step", _batches, steps),
        ("speedup", "Times faster than each provider, by case", _speedup, [c for c in cases if c.others]),
        ("floor", "Fraction of the speed of a copy, by case", _floor, [c for c in cases if c.floor]),
        ("memory", "Peak memory of a step, by case", _memory, [c for c in cases if _peak(c) > MEMORY]),
    ):
        if drawable:
            drawn[f"{text}; {allocator} allocator"] = path = folder / f"{name}{suffix}.png"
            _save(path, record, drawable, draw)
    return drawn


def _save(path: Path, record: Record, cases: list[Case], draw: Callable[[Any, list[Case]], None]) -> None:
    from matplotlib import pyplot as plt

    height = 4.0 if draw is _batches else 1.9 + 0.3 * len(cases)
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    draw(axes, cases)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    note = f"{record.describe()}. Forward and backward, medians. Made by: {record.command}; vae-fast bench --report"
    figure.supxlabel(textwrap.fill(note, 130), fontsize=7, color="0.3")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _times_slower(case: Case) -> list[tuple[str, float]]:
    return [(name, t.times_slower_than(case.timings[OURS])[1]) for name, t in case.others.items()]


def _speedup(axes: Any, cases: list[Case]) -> None:
    _dots(axes, cases, _times_slower)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("provider's time over vae_fast's (right of 1: vae_fast is faster)")
    _scale(axes, "{:g}×")


def _batches(axes: Any, cases: list[Case]) -> None:
    from matplotlib import ticker

    series: dict[str, list[tuple[int, float]]] = {}
    for case in sorted(cases, key=lambda case: case.parameters["batch"]):
        for name, factor in _times_slower(case):
            series.setdefault(name, []).append((case.parameters["batch"], factor))
    for name, (colour, marker) in _styles(series).items():
        axes.plot(*zip(*series[name], strict=True), marker, linestyle="-", color=colour, label=name)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks([case.parameters["batch"] for case in cases])
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_ylim(bottom=0)
    axes.grid(color="0.88")
    axes.set_xlabel("batch")
    axes.set_ylabel("provider's time over vae_fast's\n(above 1: vae_fast is faster)")


def _floor(axes: Any, cases: list[Case]) -> None:
    _dots(
        axes,
        cases,
        lambda c: [(n, (c.floor or 0) / t.median) for n, t in (c.others | {OURS: c.timings[OURS]}).items()],
    )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("fraction of the speed of a copy of the fewest bytes (1: as fast as memory)")
    _scale(axes, "{:g}")


def _dots(axes: Any, cases: list[Case], points: Callable[[Case], list[tuple[str, float]]]) -> None:
    series: dict[str, list[tuple[float, int]]] = {}
    for y, case in enumerate(cases):
        for name, x in points(case):
            series.setdefault(name, []).append((x, y))
    for name, style in _styles(series).items():
        axes.plot(
            *zip(*series[name], strict=True),
            style[1],
            color=style[0],
            label=name,
            markersize=7,
            markeredgecolor="black",
        )
    axes.set_yticks(range(len(cases)), [_label(case) for case in cases], fontsize=8)
    axes.set_ylim(len(cases) - 0.4, -0.6)  # the first case on top
    axes.set_xscale("log")
    axes.grid(color="0.88")


def _scale(axes: Any, form: str) -> None:
    """Ticks at 1, 2 and 5 in every decade, written as people write numbers."""
    from matplotlib import ticker

    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: form.format(float(f"{x:.3g}"))))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def _memory(axes: Any, cases: list[Case]) -> None:
    _dots(axes, cases, lambda c: [(n, t.peak_bytes / 1e6) for n, t in c.timings.items() if t.peak_bytes])
    axes.set_xlabel("peak memory of one step above its inputs, MB")
    _scale(axes, "{:g}")


def _styles(providers: Any) -> dict[str, tuple[str, str]]:
    """Known providers look the same in every plot."""
    more = iter(MORE * (1 + len(providers)))
    styles = {name: STYLES[name] if name in STYLES else next(more) for name in providers}
    return dict(sorted(styles.items(), key=lambda item: item[0] == OURS))  # ours last: on top


def _peak(case: Case) -> int:
    return max(t.peak_bytes or 0 for t in case.timings.values())


def _label(case: Case) -> str:
    return textwrap.fill(case.title.replace(", forward + backward", "").replace(" float32", ""), 62)
