"""`vae-fast bench --report`: tables and plots of a record."""

from __future__ import annotations

from pathlib import Path

from .records import OURS, Case, Record
from .verdict import MARGIN, meet, times, verdict

MARKS = {"wins": "", "ties": " (tie)", "loses": " **(loses)**"}


def write_report(records: list[Record], folder: Path) -> list[Path]:
    """Writes report.md and its plots, of all allocators in `records`; their paths."""
    from .plots import draw_plots

    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Measured",
        "",
        f"Written by `vae-fast bench --report`, from records of `{records[0].command}`.",
        "",
    ]
    written = [folder / "report.md"]
    for record in sorted(records, key=lambda r: str(r.conditions["allocator"])):  # the default comes first
        plots = draw_plots(record, folder)
        lines += section(record, plots)
        written += plots.values()
    written[0].write_text("\n".join(lines))
    return written


def section(record: Record, plots: dict[str, Path]) -> list[str]:
    lines = [
        f"## {str(record.conditions['allocator']).capitalize()} allocator",
        "",
        f"Conditions: {record.describe()}. Memory: {record.meaning}.",
        "",
        "Each provider has its own process and they take turns; outputs are checked against float64 before anything "
        "is timed, and allocated as a user gets them. Medians, with the quartiles of all timed steps of vae_fast. A "
        "factor is the provider's time over vae_fast's, the median over the rounds; a difference is called a tie when "
        f"it is below {MARGIN:.0%} or goes the other way in a quarter of the rounds. The floor is the time that a copy "
        "of the fewest bytes the work can move takes beyond the caches; small work, in the caches, is not bound by it.",
        "",
        *(f"- {line}" for line in verdict(record)),
        "",
        *table(record),
        "",
    ]
    for text, path in plots.items():
        lines += [f"![{text}]({path.name})", ""]
    return lines


def table(record: Record) -> list[str]:
    providers = list(dict.fromkeys(t.provider for case in record.cases for t in case.timings.values()))
    others = [p for p in providers if p != OURS]
    peaks = any(t.peak_bytes for case in record.cases for t in case.timings.values())
    head = [
        "",
        "vae_fast, ms",
        "quartiles",
        "of the floor's speed",
        *others,
        *(["peak memory, MB"] if peaks else []),
    ]
    rows = [head, ["---"] * len(head)]
    for case in record.cases:
        if (ours := case.ours) is None:
            continue
        row = [case.title, _ms(ours.median), f"{_ms(ours.low)} to {_ms(ours.high)}"]
        row.append(f"{case.floor / ours.median:.0%}" if case.floor else "")
        for name in others:
            met = meet(case.title, ours, case.timings[name]) if name in case.timings else None
            row.append(times(met.factor) + MARKS[met.result] if met else "")
        rows.append([*row, _peaks(case)] if peaks else row)
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def _peaks(case: Case) -> str:
    found = [t for t in case.timings.values() if t.peak_bytes]
    return ", ".join(f"{t.provider} {t.peak_bytes / 1e6:,.0f}" for t in found if t.peak_bytes)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"
