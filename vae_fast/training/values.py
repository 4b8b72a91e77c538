"""What the values of dense samples are: the checks that they pass before training, and facts of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch

from .errors import DataError

EXACT = 1 << 24  # float32 has all whole numbers up to here


class Facts(NamedTuple):
    """What all values are; of sparse samples those that are left out (0) included."""

    lo: float
    hi: float
    has_fractions: bool
    is_between_levels: bool = False  # see below
    is_rounded: bool = False  # whole numbers above EXACT became float32
    top: int | None = None  # the largest uint8

    def joined(self, other: Facts) -> Facts:
        tops = [facts.top for facts in (self, other) if facts.top is not None]
        return Facts(
            min(self.lo, other.lo),
            max(self.hi, other.hi),
            self.has_fractions or other.has_fractions,
            self.is_between_levels or other.is_between_levels,
            self.is_rounded or other.is_rounded,
            max(tops) if tops else None,
        )


def as_float32(source: str, array: np.ndarray) -> tuple[np.ndarray, bool]:
    """Finite numbers as float32, and whether whole numbers were rounded. Raises DataError."""
    if not np.isfinite(array).all():
        raise DataError(f"{source}: holds NaN or infinite values")
    is_rounded = array.dtype.kind in "iu" and max(-int(array.min()), int(array.max())) > EXACT
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{source}: holds values beyond float32")
    return array, is_rounded


def limits(part: Any) -> tuple[float, float]:
    """The smallest and the largest value, of a tensor or of samples that have `facts`; uint8 and bool as parts of 1."""
    if facts := getattr(part, "facts", None):
        return facts.lo, facts.hi
    if not part.is_floating_point():
        return 0.0, 1.0
    lo, hi = torch.stack(torch.aminmax(part)).tolist()
    return lo, hi


def top(part: Any) -> int:
    """The largest of uint8."""
    facts = getattr(part, "facts", None)
    return int(part.max()) if facts is None else facts.top


def has_fractions(part: Any) -> bool:
    if facts := getattr(part, "facts", None):
        return facts.has_fractions
    return part.is_floating_point() and bool((part != part.round()).any())


def is_between_levels(part: Any) -> bool:
    """Whether it has values that are no 255ths, by more than float16 rounds them."""
    if facts := getattr(part, "facts", None):
        return facts.is_between_levels
    if not part.is_floating_point():
        return False
    levels = part * 255
    return bool(((levels - levels.round()).abs() > 0.2).any())


def facts_of(source: str, chunks: Iterable[np.ndarray]) -> Facts:
    """Of all chunks of an array, in one pass. Raises DataError."""
    return reduce(Facts.joined, (_of_chunk(source, chunk) for chunk in chunks))


def _of_chunk(source: str, chunk: np.ndarray[Any, Any]) -> Facts:
    if chunk.dtype == np.bool_:
        return Facts(0.0, 1.0, False)
    if chunk.dtype == np.uint8:
        return Facts(0.0, 1.0, False, top=int(chunk.max()))
    array, is_rounded = as_float32(source, chunk)
    part = torch.from_numpy(array)
    return Facts(*limits(part), has_fractions(part), is_between_levels(part), is_rounded)
