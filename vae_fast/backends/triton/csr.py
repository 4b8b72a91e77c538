"""Targets of counts in CSR form: every element of a tile searches its column among those that its row has stored.

The search is among the few that lie in the tile, which stay in the L1 cache; the loops around it, and the bits of what
they compute, are those of a dense target.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ...likelihoods.csr import Csr
from .launch import Key, key


@triton.jit
def _find(col, lo, hi, wanted, width):
    """The first place in [lo, hi), at most `width` of them, whose column is not below the one wanted."""
    while width > 0:
        middle = (lo + hi) // 2
        is_open = lo < hi
        below = is_open & (tl.load(col + middle, mask=is_open, other=0) < wanted)
        lo, hi = tl.where(below, middle + 1, lo), tl.where(is_open & ~below, middle, hi)
        width = width // 2
    return lo


@triton.jit
def stored(target, row, start, cols, there, n, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The counts of the columns `cols` (1, COLS), which begin with `start`, of rows (ROWS, 1); target is (crow, col,
    values). NaN, all of them, where a row has stored what is not found by its column."""
    crow, col, values = target
    begin = tl.load(crow + row).to(tl.int64)
    count = (tl.load(crow + row + 1).to(tl.int64) - begin).to(tl.int32)
    col += begin
    none = tl.zeros((ROWS, 1), tl.int32)
    width = tl.max(count)
    first = tl.where(start == 0, none, _find(col, none, count, none + start, width))
    end = tl.where(start + COLS >= n, count, _find(col, none, count, none + (start + COLS), width))
    lo = first + tl.zeros((ROWS, COLS), tl.int32)
    hi = end + tl.zeros((ROWS, COLS), tl.int32)
    lo = _find(col, lo, hi, cols, tl.max(end - first))
    found = (lo < hi) & there
    found = found & (tl.load(col + lo, mask=found, other=-1) == cols)
    x = tl.load(values + begin + lo, mask=found, other=0).to(tl.float32)
    is_whole = tl.sum(found.to(tl.int32), axis=1)[:, None] == end - first
    return tl.where(is_whole, x, float("nan"))


def target_key(target: Tensor | Csr) -> Key:
    """As `key`; of a sparse target without strides, and without how much it has stored."""
    if isinstance(target, Tensor):
        return key(target)
    aligned = tuple(t.data_ptr() % 16 == 0 for t in target.parts[:3])
    return (target.shape, (), target.dtype, (aligned, target.col.dtype), False)


def pointers(target: Tensor | Csr) -> tuple[Tensor, Any]:
    """A tensor on its device, and what a kernel takes for it."""
    return (target, target) if isinstance(target, Tensor) else (target.values, target.parts[:3])
