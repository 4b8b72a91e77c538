"""The command and its options. What it does is imported when it runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class AllocatorChoice(StrEnum):
    default = "default"
    tuned = "tuned"
    both = "both"


@app.command()
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes, each provider once: is it right? Nothing is timed.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN", help='As in pytest -k: "latent and bfloat16".')
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the records. (default benchmarks/results/DEVICE/TIME; --report: the newest)"
        ),
    ] = None,
    allocator: Annotated[
        AllocatorChoice,
        typer.Option(
            help="tuned: malloc keeps its memory for everybody, so that nobody wins by malloc alone."
        ),
    ] = AllocatorChoice.default,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Of two records, files or folders: what got slower? Then status 1."),
    ] = None,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write docs/benchmarks/ from the records in --out; measures nothing."),
    ] = False,
) -> int:
    """Measure against eager PyTorch, torch.compile and JAX, and say where vae_fast wins and loses."""
    if compare is not None:
        from .compare import run_compare

        return run_compare(*compare)
    if report:
        from .run import run_report

        return run_report(out)
    from .run import run_benchmarks

    allocators = ["default", "tuned"] if allocator == "both" else [allocator.value]
    return run_benchmarks(allocators, quick=quick, only=only, out=out)
