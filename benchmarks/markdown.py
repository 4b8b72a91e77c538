"""`vae-fast bench --report`: tables and plots of a record."""

from __future__ import annotations

from pathlib import Path

from .records import Case, Record
from .timing import OURS, Timing
from .verdict import MARGIN, meet, times, verdict

PARTS = (
    "Forward without gradients, as in an evaluation; backward after a forward pass that is not timed. A provider that "
    "keeps more from its forward pass (the noise, the gradient itself) has less to do in backward: what it costs shows "
    "in the times of both together and in the memory."
)
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
        "of the fewest bytes the work can move takes beyond the caches; small work, in the caches, is not bound by it. "
        "In parentheses, where noise is drawn: the same for the time that vae_fast's own generator takes for as many "
        "numbers that stay in the caches, in the backward pass again.",
        "",
        *(f"- {line}" for line in verdict(record)),
        "",
        *table(record),
        "",
        *_section("Forward and backward alone", PARTS, parts_table(record)),
        *_section("Peak memory of a step above its inputs, MB", "", memory_table(record)),
    ]
    for text, path in plots.items():
        lines += [f"![{text}]({path.name})", ""]
    return lines


def _section(title: str, text: str, lines: list[str]) -> list[str]:
    return [f"### {title}", "", *([text, ""] if text else []), *lines, ""] if lines else []


def table(record: Record) -> list[str]:
    others = [p for p in _providers(record) if p != OURS]
    head = ["", "vae_fast, ms", "quartiles", "of the floor's speed", *others]
    rows = []
    for case in record.cases:
        if ours := case.ours:
            quartiles = f"{_ms(ours.low)} to {_ms(ours.high)}"
            rows.append([case.title, _ms(ours.median), quartiles, _fraction(case), *_factors(case, others)])
    return _lines(head, rows)


def parts_table(record: Record) -> list[str]:
    """Of each case with parts one line, whose cells have a number for each part."""
    cases = [case for case in record.cases if case.parts and case.ours]
    others = [p for p in _providers(record) if p != OURS]
    rows = []
    for case in cases:
        parts = [
            [_ms(part.ours.median), _fraction(part), *_factors(part, others)]
            for part in case.parts.values()
            if part.ours
        ]
        rows.append([case.title, *(" / ".join(filter(None, cells)) for cells in zip(*parts, strict=True))])
    names = " / ".join(dict.fromkeys(name for case in cases for name in case.parts))
    return _lines([names, "vae_fast, ms", "of the floor's speed", *others], rows)


def memory_table(record: Record) -> list[str]:
    providers = _providers(record)
    rows = [
        [case.title, *(_megabytes(case.timings.get(name)) for name in providers)] for case in record.cases
    ]
    return _lines(["", *providers], [row for row in rows if any(row[1:])])


def _providers(record: Record) -> list[str]:
    return list(dict.fromkeys(name for case in record.cases for name in case.timings))


def _lines(head: list[str], rows: list[list[str]]) -> list[str]:
    table = [head, ["---"] * len(head), *rows] if rows else []
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table]


def _factors(case: Case, others: list[str]) -> list[str]:
    met = [
        meet(case.title, case.ours, name, case.timings[name]) if case.ours and name in case.timings else None
        for name in others
    ]
    return [times(m.factor) + MARKS[m.result] if m else "" for m in met]


def _fraction(case: Case) -> str:
    if not (case.floor and case.ours):
        return ""
    noise = f" ({case.noise_floor / case.ours.median:.0%})" if case.noise_floor else ""
    return f"{case.floor / case.ours.median:.0%}{noise}"


def _megabytes(timing: Timing | None) -> str:
    if timing is None or timing.peak_bytes is None:
        return ""
    return f"{timing.peak_bytes / 1e6:,.0f}" if timing.peak_bytes >= 1e6 else "below 1"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"
