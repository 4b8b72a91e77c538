"""Gradients of broadcast parameters: summed down the samples by each program, then over programs by `combine`.

The kind of a gradient: 0 not wanted, 1 one value per element, 2 summed over the batch, 3 summed over everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .tile import combine, store

ABSENT, ELEMENT, BATCH, ALL = 0, 1, 2, 3


@triton.jit
def zeros(KIND: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    if KIND >= 2:
        return tl.zeros((ROWS, COLS), tl.float32)
    else:
        return 0.0


@triton.jit
def add(KIND: tl.constexpr, total, value, grad, grad_s, row, cols, mask, sizes, VEC: tl.constexpr):
    """Stores a gradient per element, or returns the running sum with this tile in it."""
    if KIND == 1:
        store(grad, grad_s, value, row, cols, mask, sizes, VEC)
    elif KIND >= 2:
        total += tl.where(mask, value, 0.0)
    return total


@triton.jit
def keep(KIND: tl.constexpr, total, partial, pid, parts, cols, n):
    """Writes a program's sum: a row of partial[pid // parts, :], or partial[pid]."""
    if KIND == 2:
        row = (pid // parts).to(tl.int64)
        tl.store(partial + row * n + cols, tl.sum(total, axis=0)[None, :], mask=cols < n)
    elif KIND == 3:
        tl.store(partial + pid, tl.sum(total))


def add_up(partial: Tensor, out: Tensor, order: tuple[int, ...] | None = None) -> None:
    """out = partial.sum(0), in one small launch and always in the same order. `order` is that of a launch.Layout."""
    count, width = partial.shape
    at = launch.describe((1, *out.shape), (0, *out.stride()), order=order if out.ndim else None)
    r = min(triton.next_power_of_2(count), 1024 if width < 16 else 64)
    c = max(1, min(1024 // r, triton.next_power_of_2(width)))
    steps = triton.next_power_of_2(triton.cdiv(count, r))
    launch.run(
        combine, (triton.cdiv(width, c),), out,
        partial, out, at.strides[0], at.sizes, count, width, STEPS=steps, R=r, C=c,
    )  # fmt: skip


class Sum:
    """One gradient output of a kernel."""

    def __init__(self, grad: Tensor | None, shape: Sequence[int]) -> None:
        self.grad = grad
        self.partial: Tensor | None = None
        if grad is None:
            self.kind = ABSENT
        elif grad.shape == shape:
            self.kind = ELEMENT
        else:
            self.kind = BATCH if grad.ndim else ALL

    @property
    def summed(self) -> bool:
        return self.kind >= BATCH

    def zero(self) -> None:
        if self.grad is not None:
            self.grad.zero_()

    def full_strides(self) -> tuple[int, ...] | None:
        """Strides of a gradient per element; None where the kernel writes partial sums."""
        return self.grad.stride() if self.grad is not None and self.kind == ELEMENT else None

    def target(self, plan: launch.Plan, n: int) -> Tensor | None:
        """What the kernel writes."""
        if self.grad is None or not self.summed:
            return self.grad
        size = (plan.programs // plan.parts, n) if self.kind == BATCH else (plan.programs, 1)
        self.partial = torch.empty(size, dtype=torch.float32, device=self.grad.device)
        return self.partial

    def finish(self, at: launch.Layout) -> None:
        if self.partial is not None and self.grad is not None:
            add_up(self.partial, self.grad, at.order)
