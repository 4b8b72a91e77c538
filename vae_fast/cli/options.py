"""Options that several commands have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

Number = TypeVar("Number", int, float)

MOST = 2**31 - 1  # samples that -n takes

Folder = Annotated[
    Path | None,
    typer.Argument(help="A run's folder: config.json and model.safetensors. [default: the newest in runs/]"),
]
CPU = Annotated[bool, typer.Option("--cpu", help="Stay on the CPU where there is a GPU.")]
Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same bits.")]


class Part(StrEnum):
    train = "train"
    test = "test"
    valid = "valid"
    all = "all"


PartOption = Annotated[
    Part, typer.Option(help="Which samples of the data; all are in the order of the file.")
]


def sample_numbers(text: str) -> list[int]:
    return list(numbers(text, int, "numbers of samples like 3,7,9"))


def finite(value: float) -> float:
    """A callback of options whose least value is checked already. Raises typer.BadParameter."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not finite")
    return value


def numbers(
    text: str, of: Callable[[str], Number], like: str, count: int | None = None, between: str = ","
) -> tuple[Number, ...]:
    """Numbers with one of `between` between them; `like` says what they are. Raises typer.BadParameter."""
    try:
        found = tuple(of(part) for part in re.split(f"[{between}]", text))
        if count is not None and len(found) != count:
            raise ValueError
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not {like}") from None
    return found
