"""Sums in two stages: a program's own, and one small launch that adds those of all programs in a fixed order.

A gradient of a broadcast parameter has a kind: 0 not wanted, 1 one value per element, 2 summed over the batch,
3 summed over everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Job, Key, Spec, cached, key, run, specs
from .layout import Plan, Strides, column_sum_plan, describe, elementwise_plan
from .tile import combine, store
from .tuning import Choice

ABSENT, ELEMENT, BATCH, ALL = 0, 1, 2, 3


@triton.jit
def zeros(KIND: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    if KIND >= 2:
        return tl.full((ROWS, COLS), -0.0, tl.float32)  # which an addition leaves out
    else:
        return 0.0


@triton.jit
def add(KIND: tl.constexpr, total, value, grad, grad_s, at, sizes, VEC: tl.constexpr):
    """Stores a gradient per element, or returns the running sum with this tile in it."""
    if KIND == 1:
        store(grad, grad_s, value, at, sizes, VEC)
    elif KIND >= 2:
        total += tl.where(at[5], value, 0.0)
    return total


@triton.jit
def keep(KIND: tl.constexpr, total, partial, pid, there, cols, n, PARTS: tl.constexpr):
    """Writes a program's sum: a row of partial[pid // PARTS, :], or partial[pid]."""
    if KIND == 2:
        row = (pid // PARTS).to(tl.int64)
        tl.store(partial + row * n + cols, tl.sum(total, axis=0)[None, :], mask=there)
    elif KIND == 3:
        tl.store(partial + pid, tl.sum(total))


def kind(grad: Spec | None, shape: Strides) -> int:
    if grad is None:
        return ABSENT
    if grad.shape == shape:
        return ELEMENT
    return BATCH if grad.shape else ALL


def strides(grad: Spec | None, shape: Strides) -> Strides | None:
    """Strides of a gradient per element; None where the kernel writes partial sums."""
    return grad.strides if grad is not None and kind(grad, shape) == ELEMENT else None


def plan_gradients(
    grads: Sequence[Spec | None], shape: Strides, n: int, choice: Choice
) -> tuple[Plan, list[tuple[int, int] | None]]:
    """The plan of a backward kernel, and the shapes of its partial sums."""
    kinds = [kind(g, shape) for g in grads]
    if max(kinds) < BATCH:
        return elementwise_plan(shape[0], n, choice), [None] * len(kinds)
    plan = column_sum_plan(shape[0], n, choice)
    sizes = {BATCH: (plan.programs // plan.parts, n), ALL: (plan.programs, 1)}
    return plan, [sizes.get(k) for k in kinds]


def outputs(job: Job, grads: Sequence[Tensor | None], on: Tensor) -> list[Tensor | None]:
    """What a kernel writes: the gradients, or scratch for partial sums."""
    if not any(job.scratch):
        return list(grads)
    return [
        g if size is None else torch.empty(size, dtype=torch.float32, device=on.device)
        for g, size in zip(grads, job.scratch, strict=True)
    ]


def add_up(partial: Tensor | None, out: Tensor | None, order: Strides | None = None) -> None:
    """out = partial.sum(0) in one small launch; nothing to do if they are one tensor. `order` is that of a Layout."""
    if partial is not None and out is not None and partial is not out:
        run(_combine_job(out.device, order if out.ndim else None, key(partial), key(out)), out, partial, out)


@cached
def _combine_job(device: torch.device, order: Strides | None, *keys: Key) -> Job:
    partial, out = specs(*keys)
    assert partial is not None and out is not None
    count, width = partial.shape
    at = describe((1, *out.shape), (0, *out.strides), order=order)
    r = min(triton.next_power_of_2(count), 1024 if width < 16 else 64)
    c = max(1, min(1024 // r, triton.next_power_of_2(width)))
    steps = triton.next_power_of_2(triton.cdiv(count, r))
    return Job(combine, (triton.cdiv(width, c),), 128, (at.strides[0], at.sizes, count, width, steps, r, c))
