"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MOST = 2**31 - 1  # samples that -n takes

Folder = Annotated[
    Path | None,
    typer.Argument(help="A run's folder: config.json and model.safetensors. [default: the newest in runs/]"),
]
CPU = Annotated[bool, typer.Option("--cpu", help="Stay on the CPU where there is a GPU.")]
Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same bits.")]
