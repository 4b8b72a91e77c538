"""Sums in two stages: a program's own, and one small launch that adds those of all programs in a fixed order.

A gradient of a broadcast parameter has a kind: 0 not wanted, 1 one value per element, 2 summed over the batch,
3 summed over everything; with draws, 2 and 3 are sums over them, too, and 4 is one over them alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Job, Key, Spec, cached, key, run, specs
from .layout import MANY, Plan, Strides, column_sum_plan, describe, draw_parts, elementwise_plan
from .tile import combine, store
from .tuning import Choice

ABSENT, ELEMENT, BATCH, ALL, OVER_DRAWS = range(5)


@triton.jit
def zeros(KIND: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    if KIND >= 2:
        return tl.full((ROWS, COLS), -0.0, tl.float32)  # which an addition leaves out
    else:
        return 0.0


@triton.jit
def begin(KIND: tl.constexpr, total, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The running sum where a tile of samples begins: 0 for a sum over its draws."""
    if KIND == 4:
        return zeros(KIND, ROWS, COLS)
    else:
        return total


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


def kind(grad: Spec | None, shape: Strides, has_draws: bool = False) -> int:
    if grad is None:
        return ABSENT
    if len(grad.shape) > len(shape):
        return ELEMENT
    if grad.shape == shape:
        return OVER_DRAWS if has_draws else ELEMENT
    return BATCH if grad.shape else ALL


def strides(grad: Spec | None, shape: Strides) -> Strides | None:
    """Strides of a gradient per element, after its draws; None where the kernel writes partial sums."""
    return None if kind(grad, shape) in (ABSENT, BATCH, ALL) else grad.strides[-len(shape) :]  # type: ignore[union-attr]


def share_draws(draws: int | None, kinds: Sequence[int], plan: Plan) -> tuple[int, int | None]:
    """draw_parts of a backward kernel: a program has all draws of its elements where it adds them up."""
    return draw_parts(draws, MANY if OVER_DRAWS in kinds else plan.programs)


def plan_gradients(
    grads: Sequence[Spec | None], shape: Strides, n: int, choice: Choice, draws: int | None = None
) -> tuple[Plan, list[tuple[int, int] | None]]:
    """The plan of a backward kernel, and the shapes of its partial sums."""
    kinds = [kind(g, shape, draws is not None) for g in grads]
    if BATCH not in kinds and ALL not in kinds:
        return elementwise_plan(shape[0], n, choice), [None] * len(kinds)
    plan = column_sum_plan(shape[0], n, choice)
    parts, _ = share_draws(draws, kinds, plan)
    sizes = {BATCH: (plan.programs // plan.parts * parts, n), ALL: (plan.programs * parts, 1)}
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
