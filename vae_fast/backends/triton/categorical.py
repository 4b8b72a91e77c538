"""The op `categorical`: -log softmax(logits) over the last dim, of a class or of counts for every class.

Forward reads each row once. Every lane keeps a maximum m, s = sum exp(l - m), and for counts n = sum x and
dot = sum x (l - m); lanes are merged at the end of the row. So an element costs one exp, nothing overflows, and of
nll = n log s - dot nothing cancels, as no term of the sums is negative. A program takes several short rows, or walks
along a long one. Where there are few rows, programs share each, and a second kernel merges what they leave.

Backward is elementwise: g (n exp(l - lse) - x), n being the total.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...likelihoods.categorical import IGNORED
from . import layout
from .formulas import exp, factors
from .launch import Job, Key, Spec, cached, key, run, specs
from .layout import Plan, Strides, elementwise_plan, exact

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # not -inf, from which l - m would be NaN
_IGNORED = tl.constexpr(IGNORED)


@triton.jit
def _rows(row, positions, strides, VEC: tl.constexpr):
    """Memory offset of rows that are counted through batch and positions."""
    return (row // positions) * (strides[0] // VEC * VEC) + (row % positions) * (strides[1] // VEC * VEC)


@triton.jit
def _weighted(x, el):
    """x l; 0 for x = 0 whatever l is, -inf too: a class that is not counted costs nothing."""
    return tl.where(x == 0, 0.0, x * el)


@triton.jit
def _merge(m, s, n, dot, EXACT: tl.constexpr):
    """One row's sums from many of its parts (axis 1)."""
    top = tl.max(m, axis=1)[:, None]
    s = tl.sum(s * exp(m - top, EXACT), axis=1)[:, None]
    dot = tl.sum(dot + _weighted(n, m - top), axis=1)[:, None]
    return top, s, tl.sum(n, axis=1)[:, None], dot


@triton.jit
def _finish(
    logits, target, nll, lse, total, logits_s, target_s, row, inside, rows, positions, n, m, s, count, dot,
    INDEX: tl.constexpr,
):  # fmt: skip
    log_s = tl.log(s) + (m - m)  # NaN where a logit is infinite
    if INDEX:
        index = tl.load(target + _rows(row, positions, target_s, 1), mask=inside, other=0).to(tl.int64)
        known = (index >= 0) & (index < n)
        at = logits + _rows(row, positions, logits_s, 1) + index * logits_s[2]
        value = log_s + (m - tl.load(at, mask=inside & known, other=0).to(tl.float32))
        count = tl.where(index == _IGNORED, 0.0, 1.0)
        value = tl.where(index == _IGNORED, 0.0, tl.where(known, value, float("nan")))
    else:
        value = count * log_s - dot
    tl.store(nll + row, value, mask=inside)
    rounded = m + log_s
    tl.store(lse + row, rounded, mask=inside)
    # total exp(l - lse) loses nothing to lse's rounding if total has the factor that makes up for it.
    tl.store(total + row, count * tl.exp((rounded - m) - log_s), mask=inside)


@triton.jit(do_not_specialize=["rows", "positions", "parts"])
def _forward(
    logits, target, nll, lse, total, partial, logits_s, target_s, rows, positions, n, parts,
    INDEX: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr, VEC: tl.constexpr, OFFSETS_64: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    part = pid % parts
    row = (pid // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = row < rows
    at = logits + _rows(row, positions, logits_s, VEC)
    if not INDEX:
        target_at = target + _rows(row, positions, target_s, VEC)
    m = tl.full((ROWS, COLS), _LOWEST, tl.float32)
    s = tl.zeros((ROWS, COLS), tl.float32)
    count = tl.zeros((ROWS, COLS), tl.float32)
    dot = tl.zeros((ROWS, COLS), tl.float32)
    for step in range(STEPS):
        cols = (part.to(tl.int64 if OFFSETS_64 else tl.int32) * STEPS + step) * COLS + tl.arange(0, COLS)[
            None, :
        ]
        mask = inside & (cols < n // VEC * VEC)
        el = tl.load(at + cols * logits_s[2], mask=mask, other=float("-inf")).to(tl.float32)
        far = el - m
        higher = far > 0
        e = exp(-tl.abs(far), EXACT)
        s = tl.where(higher, s * e + 1.0, s + e)
        if not INDEX:
            x = tl.load(target_at + cols * target_s[2], mask=mask, other=0).to(tl.float32)
            dot += _weighted(tl.where(higher, -count, x), far)
            count += x
        m = tl.where(higher, el, m)
    m, s, count, dot = _merge(m, s, count, dot, EXACT)
    if partial is None:
        _finish(
            logits, target, nll, lse, total, logits_s, target_s, row, inside, rows, positions, n, m, s, count, dot,
            INDEX,
        )  # fmt: skip
    else:
        here = partial + (row * parts + part) * 4
        tl.store(here, m, mask=inside)
        tl.store(here + 1, s, mask=inside)
        tl.store(here + 2, count, mask=inside)
        tl.store(here + 3, dot, mask=inside)


@triton.jit(do_not_specialize=["rows", "positions", "parts"])
def _merge_parts(
    logits, target, nll, lse, total, partial, logits_s, target_s, rows, positions, n, parts,
    INDEX: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) + tl.zeros((1, 1), tl.int64)
    part = tl.arange(0, PARTS)[None, :]
    there = part < parts
    here = partial + (row * parts + part) * 4
    m = tl.load(here, mask=there, other=_LOWEST)
    s = tl.load(here + 1, mask=there, other=0)
    count = tl.load(here + 2, mask=there, other=0)
    dot = tl.load(here + 3, mask=there, other=0)
    m, s, count, dot = _merge(m, s, count, dot, True)
    _finish(
        logits, target, nll, lse, total, logits_s, target_s, row, row < rows, rows, positions, n, m, s, count, dot,
        INDEX,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "positions", "parts"])
def _backward(
    logits, target, lse, total, grad_nll, grad_logits,
    logits_s, target_s, grad_nll_s, grad_logits_s, rows, positions, n, parts,
    INDEX: tl.constexpr, VEC: tl.constexpr, OFFSETS_64: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = (pid // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = (pid % parts).to(tl.int64 if OFFSETS_64 else tl.int32) * COLS + tl.arange(0, COLS)[None, :]
    inside = row < rows
    mask = inside & (cols < n // VEC * VEC)
    g = tl.load(grad_nll + _rows(row, positions, grad_nll_s, 1), mask=inside, other=0)
    log_sum = tl.load(lse + row, mask=inside, other=0)
    at = logits + _rows(row, positions, logits_s, VEC) + cols * logits_s[2]
    count = tl.load(total + row, mask=inside, other=0)
    # A count may be so large that it sees what exp() leaves out.
    top, scale = factors(tl.load(at, mask=mask, other=0).to(tl.float32) - log_sum, 2)
    p = count * scale * (scale * top)
    if INDEX:
        index = tl.load(target + _rows(row, positions, target_s, 1), mask=inside, other=0).to(tl.int64)
        g = tl.where((index >= 0) & (index < n), g, float("nan"))
        grad = tl.where(index == _IGNORED, 0.0, g * tl.where(cols == index, p - 1.0, p))
    else:
        x_at = target + _rows(row, positions, target_s, VEC) + cols * target_s[2]
        grad = g * (p - tl.load(x_at, mask=mask, other=0).to(tl.float32))
    out = grad_logits + _rows(row, positions, grad_logits_s, VEC) + cols * grad_logits_s[2]
    tl.store(out, grad.to(grad_logits.dtype.element_ty), mask=mask)


class _Tensors(NamedTuple):
    """How a kernel is told where tensors (batch, positions[, classes]) have their elements."""

    strides: list[Strides]
    vec: int  # power of two up to 16 that divides the number of classes and all strides but theirs
    wide: bool  # offsets along classes need 64 bits


def _describe(shape: Strides, *tensors: Spec) -> _Tensors:
    found, vec, extent = [], math.gcd(16, shape[2]), shape[2]
    for t in tensors:
        steps = tuple(step if size > 1 else 0 for step, size in zip(t.strides, shape, strict=False))
        if len(steps) == 3:
            vec = math.gcd(vec, *steps[:2])
            extent = max(extent, shape[2] * steps[2])
        found.append(steps)
    return _Tensors(found, vec, extent >= 2**31 - 2**16)


def _row_plan(rows: int, n: int) -> Plan:
    """Whole rows for a program, or a part of a long one where there are few."""
    plan = elementwise_plan(rows, n)
    tiles = triton.cdiv(n, plan.cols)
    parts = 1
    if n > layout.LONG and rows < layout.MANY:
        parts = min(1024, triton.cdiv(tiles, 4), triton.cdiv(layout.MANY, rows))
    steps = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, steps)
    height = plan.rows
    if parts == 1:  # elementwise_plan had more programs to fill a GPU with
        height = min(max(1, layout.TILE // plan.cols), triton.next_power_of_2(rows))
        while height > 1 and triton.cdiv(rows, height) < layout.FEW:
            height //= 2
    return Plan(triton.cdiv(rows, height) * parts, parts, steps, height, plan.cols)


@cached
def _forward_jobs(device: torch.device, *keys: Key) -> list[Job]:
    logits, target = specs(*keys)
    assert logits is not None and target is not None
    batch, positions, n = logits.shape
    rows, index = batch * positions, len(target.shape) == 2
    at = _describe(logits.shape, logits, target)
    plan = _row_plan(rows, n)
    shared = (*at.strides, rows, positions, n, plan.parts)
    first = Job(
        _forward, (plan.programs,), plan.threads,
        (*shared, index, plan.steps, exact(logits), at.vec, at.wide, plan.rows, plan.cols),
    )  # fmt: skip
    if plan.parts == 1:
        return [first]
    assert plan.rows == 1
    first.scratch = [(rows, 4 * plan.parts)]
    width = triton.next_power_of_2(plan.parts)
    return [first, Job(_merge_parts, (rows,), 32, (*shared, index, width))]


@cached
def _backward_job(device: torch.device, *keys: Key) -> Job:
    logits, target, grad_nll, grad = specs(*keys)
    assert logits is not None and target is not None and grad_nll is not None and grad is not None
    batch, positions, n = logits.shape
    rows = batch * positions
    at = _describe(logits.shape, logits, target, grad_nll, grad)
    plan = elementwise_plan(rows, n)
    return Job(
        _backward, (plan.programs,), plan.threads,
        (*at.strides, rows, positions, n, plan.parts, len(target.shape) == 2, at.vec, at.wide,
         plan.rows, plan.cols),
    )  # fmt: skip


def categorical_forward(logits: Tensor, target: Tensor, *, nll: Tensor, lse: Tensor, total: Tensor) -> None:
    """Fills nll, lse and total (batch, positions), which are dense, from logits (batch, positions, classes) and classes
    (batch, positions) or counts (batch, positions, classes). Class -100 is ignored, and others that do not exist have
    an nll of NaN."""
    if nll.numel() == 0 or logits.numel() == 0:
        nll.zero_()
        lse.fill_(-math.inf)
        total.zero_()
        return
    jobs = _forward_jobs(logits.device, key(logits), key(target))
    partial = None
    if len(jobs) == 2:
        partial = torch.empty(jobs[0].scratch[0], dtype=torch.float32, device=logits.device)  # type: ignore[arg-type]
    for job in jobs:
        run(job, logits, logits, target, nll, lse, total, partial)


def categorical_backward(
    logits: Tensor, target: Tensor, lse: Tensor, total: Tensor, grad_nll: Tensor, *, grad_logits: Tensor
) -> None:
    """Fills grad_logits, of any strides, as those of the inputs are."""
    if logits.numel():
        job = _backward_job(logits.device, key(logits), key(target), key(grad_nll), key(grad_logits))
        run(job, logits, logits, target, lse, total, grad_nll, grad_logits)
