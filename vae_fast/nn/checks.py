"""Checks of what nn.VAE is given."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..checks import check_is_tensor, number_of, shape_of
from .schedules import Schedule


def check_beta(beta: Any, name: str = "beta") -> Any:
    """A weight as a Python number; a tensor, so that it can be changed in place, and a schedule as they are."""
    if isinstance(beta, Schedule):
        return beta
    number = number_of(beta)
    if number is None:
        raise TypeError(f"expected {name} to be a number or a vae_fast.nn.Schedule, but got {beta!r}")
    if not 0 <= number < math.inf:
        raise ValueError(f"expected {name} to be a finite number of at least 0, but got {number}")
    return beta if isinstance(beta, Tensor) else number


def check_batch(name: str, tensor: Tensor, shape: tuple[int, ...] | None) -> None:
    """Raises for a single sample of `shape`, which some networks take for a batch of something else."""
    check_is_tensor(name, tensor)
    if tensor.ndim == 0 or (shape is not None and tensor.ndim == len(shape) and tensor.shape == shape):
        hint = f"; {name}.unsqueeze(0) is a batch of one" if tensor.ndim else ""
        raise ValueError(f"expected {name} to have shape {batch_of(shape)}, but got {shape_of(tensor)}{hint}")


def warn(message: str) -> None:
    """At the line of the caller outside of vae_fast and torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in (
        "vae_fast",
        "torch",
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def batch_of(shape: Sequence[int] | None) -> str:
    sizes = ("...",) if shape is None else map(str, shape)
    return f"({', '.join(('batch', *sizes))})"
