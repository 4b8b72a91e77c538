"""The op `categorical`: -log softmax(logits) over the last dim, of a class or of counts for every class.

Forward reads each row once. Every thread keeps a maximum m of the neighbouring classes it reads, s = sum exp(l - m),
and for counts n = sum x and dot = sum x (l - m); they are merged at the end of the row. So an element costs one exp,
nothing overflows, and of nll = n log s - dot nothing cancels, as no term of the sums is negative. A program takes
several short rows, or walks along a long one. Where there are few rows, programs share each, and a second kernel merges
what they leave. The exponential is the hardware's: its argument's rounding moves exp(-d) by less than d exp(-d) 2^-23,
3e-8 of the largest term, which the sum rounds away.

Backward is elementwise: g (n exp(l - lse) - x), n being the total.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...likelihoods.categorical import IGNORED
from ...likelihoods.csr import Csr
from . import layout
from .csr import pointers, stored, target_key
from .formulas import exp, factors
from .launch import INTERPRETED as _IN_PYTHON
from .launch import Job, Key, Spec, cached, key, run, specs
from .layout import Plan, Strides, choice_of, elementwise_plan, exact
from .tile import elements, samples
from .tuning import EIGHT, Choice

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # not -inf, from which l - m would be NaN
_IGNORED = tl.constexpr(IGNORED)
_INTERPRETED = tl.constexpr(_IN_PYTHON)


@triton.jit
def _rows(tensor, first, local, positions, strides, VEC: tl.constexpr):
    """Addresses of rows; strides are (row,), or (batch, position) where rows are counted through both."""
    if len(strides) == 1:
        step = strides[0] // VEC * VEC
        return tensor + first * step + local * step
    else:
        row = first + local
        at = (row // positions) * (strides[0] // VEC * VEC) + (row % positions) * (strides[1] // VEC * VEC)
        return tensor + at


@triton.jit
def _weighted(x, el):
    """x l; 0 for x = 0 whatever l is, -inf too: a class that is not counted costs nothing."""
    return x * tl.where(x == 0, 0.0, el)


@triton.jit
def _add(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def _merge(m, s, n, dot):
    """One row's sums from many of its parts (axis 1)."""
    top = tl.max(m, axis=1)[:, None]
    s = s * exp(m - top, False)
    dot = dot + _weighted(n, m - top)
    if _INTERPRETED:  # where a reduction of a function of ours is a loop in Python
        s, n, dot = tl.sum(s, axis=1), tl.sum(n, axis=1), tl.sum(dot, axis=1)
    else:  # one exchange between threads instead of three
        s, n, dot = tl.reduce((s, n, dot), 1, _add)
    return top, s[:, None], n[:, None], dot[:, None]


@triton.jit
def _finish(
    logits, target, nll, lse, total, logits_s, logits_c, target_s, first, local, inside, positions, n,
    m, s, count, dot, INDEX: tl.constexpr,
):  # fmt: skip
    log_s = tl.log(s) + (m - m)  # NaN where a logit is infinite
    if INDEX:
        index = tl.load(_rows(target, first, local, positions, target_s, 1)).to(tl.int64)
        known = (index >= 0) & (index < n)
        at = _rows(logits, first, local, positions, logits_s, 1) + index * logits_c
        value = log_s + (m - tl.load(at, mask=known, other=0).to(tl.float32))
        count = tl.where(index == _IGNORED, 0.0, 1.0)
        value = tl.where(index == _IGNORED, 0.0, tl.where(known, value, float("nan")))
    else:
        value = count * log_s - dot
    row = first + local
    tl.store(nll + row, value, mask=inside)
    rounded = m + log_s
    tl.store(lse + row, rounded, mask=inside)
    # total exp(l - lse) loses nothing to lse's rounding if total has the factor that makes up for it.
    tl.store(total + row, count * tl.exp((rounded - m) - log_s), mask=inside)


@triton.jit(do_not_specialize=["rows", "positions", "parts"])
def _forward(
    logits, target, nll, lse, total, partial, logits_s, logits_c, target_s, target_c, rows, positions, n, parts,
    INDEX: tl.constexpr, STEPS: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    part = pid % PARTS
    first, local, inside = samples(pid // PARTS, rows, OFFSETS_64, ROWS)
    at = _rows(logits, first, local, positions, logits_s, VEC)
    if not INDEX and len(target_s) > 0:
        target_at = _rows(target, first, local, positions, target_s, VEC)
    m = tl.full((ROWS, COLS // GROUP), _LOWEST, tl.float32)
    s = tl.zeros((ROWS, COLS // GROUP), tl.float32)
    count = tl.zeros((ROWS, COLS // GROUP), tl.float32)
    dot = tl.zeros((ROWS, COLS // GROUP), tl.float32)
    for step in range(STEPS):
        start = (part.to(tl.int64 if OFFSETS_64 else tl.int32) * STEPS + step) * COLS
        cols, there = elements(start, n, (), WHOLE, VEC, False, COLS)
        there = tl.broadcast_to(there, (ROWS, COLS))
        el = tl.load(at + cols * logits_c, mask=there, other=float("-inf")).to(tl.float32)
        el = tl.reshape(el, (ROWS, COLS // GROUP, GROUP))
        top = tl.maximum(m, tl.max(el, axis=2))
        fall = m - top
        far = el - top[:, :, None]
        s = s * exp(fall, False) + tl.sum(exp(far, False), axis=2)
        if not INDEX:
            if len(target_s) == 0:
                x = stored(target, (first + local) % positions, start, cols, there, n, ROWS, COLS)
            else:
                x = tl.load(target_at + cols * target_c, mask=there, other=0).to(tl.float32)
            x = tl.reshape(x, (ROWS, COLS // GROUP, GROUP))
            dot += _weighted(count, fall) + tl.sum(_weighted(x, far), axis=2)
            count += tl.sum(x, axis=2)
        m = top
    m, s, count, dot = _merge(m, s, count, dot)
    if partial is None:
        _finish(
            logits, target, nll, lse, total, logits_s, logits_c, target_s, first, local, inside, positions, n,
            m, s, count, dot, INDEX,
        )  # fmt: skip
    else:
        here = partial + ((first + local) * PARTS + part) * 4
        tl.store(here, m, mask=inside)
        tl.store(here + 1, s, mask=inside)
        tl.store(here + 2, count, mask=inside)
        tl.store(here + 3, dot, mask=inside)


@triton.jit(do_not_specialize=["rows", "positions", "parts"])
def _merge_parts(
    logits, target, nll, lse, total, partial, logits_s, logits_c, target_s, target_c, rows, positions, n, parts,
    INDEX: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first, local, inside = samples(tl.program_id(0), rows, False, 1)
    part = tl.arange(0, WIDTH)[None, :]
    there = part < parts
    here = partial + (first * parts + part) * 4
    m = tl.load(here, mask=there, other=_LOWEST)
    s = tl.load(here + 1, mask=there, other=0)
    count = tl.load(here + 2, mask=there, other=0)
    dot = tl.load(here + 3, mask=there, other=0)
    m, s, count, dot = _merge(m, s, count, dot)
    _finish(
        logits, target, nll, lse, total, logits_s, logits_c, target_s, first, local, inside, positions, n,
        m, s, count, dot, INDEX,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "positions"])
def _backward(
    logits, target, lse, total, grad_nll, grad_logits,
    logits_s, logits_c, target_s, target_c, grad_nll_s, grad_logits_s, grad_logits_c, rows, positions, n,
    INDEX: tl.constexpr, EXACT: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    first, local, inside = samples(pid // PARTS, rows, OFFSETS_64, ROWS)
    start = (pid % PARTS).to(tl.int64 if OFFSETS_64 else tl.int32) * COLS
    cols, there = elements(start, n, (), WHOLE, VEC, False, COLS)
    mask = tl.broadcast_to(there, (ROWS, COLS))
    g = tl.load(_rows(grad_nll, first, local, positions, grad_nll_s, 1))
    log_sum = tl.load(lse + first + local)
    count = tl.load(total + first + local)
    at = _rows(logits, first, local, positions, logits_s, VEC) + cols * logits_c
    far = tl.load(at, mask=mask, other=0).to(tl.float32) - log_sum
    if INDEX:
        p = count * exp(far, EXACT)
        index = tl.load(_rows(target, first, local, positions, target_s, 1)).to(tl.int64)
        g = tl.where((index >= 0) & (index < n), g, float("nan"))
        grad = tl.where(index == _IGNORED, 0.0, g * tl.where(cols == index, p - 1.0, p))
    else:
        # A count may be so large that it sees what exp() leaves out.
        top, scale = factors(far, 2)
        p = count * scale * (scale * top)
        if len(target_s) == 0:
            x = stored(target, (first + local) % positions, start, cols, mask, n, ROWS, COLS)
        else:
            x_at = _rows(target, first, local, positions, target_s, VEC) + cols * target_c
            x = tl.load(x_at, mask=mask, other=0).to(tl.float32)
        grad = g * (p - x)
    out = _rows(grad_logits, first, local, positions, grad_logits_s, VEC) + cols * grad_logits_c
    tl.store(out, grad.to(grad_logits.dtype.element_ty), mask=inside & there)


class _Tensors(NamedTuple):
    """How a kernel is told where tensors (batch, positions[, classes]) have their elements."""

    strides: list[Strides | int]  # of rows, then of classes where there are some (see _rows)
    vec: int  # power of two up to 16 that divides the number of classes and all strides but theirs
    extent: int  # of a row in memory
    step: int  # the longest from a row to the next


def _describe(shape: Strides, *tensors: Spec) -> _Tensors:
    found: list[Strides | int] = []
    vec, extent, longest = math.gcd(16, shape[2]), shape[2], 0
    for t in tensors:
        if not t.strides:  # sparse counts
            found += [(), 0]
            continue
        batch, position, *rest = (
            step if size > 1 else 0 for step, size in zip(t.strides, shape, strict=False)
        )
        steps: Strides = (batch, position)
        if shape[1] == 1 or shape[0] == 1 or batch == shape[1] * position:
            steps = (batch if shape[1] == 1 else position,)
        found.append(steps)
        longest = max(longest, *steps)
        if rest:
            found.append(rest[0])
            vec = math.gcd(vec, *steps)
            extent = max(extent, shape[2] * rest[0])
    return _Tensors(found, vec, extent, longest)


def _group(plan: Plan, at: _Tensors, logits: Spec) -> int:
    """Neighbouring classes that a thread holds: their maximum is taken without an exchange."""
    contiguous = at.strides[1] == 1
    return min(at.vec, 16 // logits.dtype.itemsize, plan.cols) if contiguous else 1


def _constants(plan: Plan, at: _Tensors) -> tuple[Any, ...]:
    far = at.extent + plan.rows * at.step >= 2**31 - 2**16
    return plan.parts, plan.whole, at.vec, far, plan.rows, plan.cols


def _row_plan(rows: int, n: int, choice: Choice = EIGHT) -> Plan:
    """Whole rows for a program, or a part of a long one where there are few."""
    plan = elementwise_plan(rows, n, choice)
    tiles = triton.cdiv(n, plan.cols)
    parts = 1
    if n > layout.LONG and rows < layout.MANY:
        parts = min(1024, triton.cdiv(tiles, 4), triton.cdiv(layout.MANY, rows))
    steps = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, steps)
    height = plan.rows
    if parts == 1:  # elementwise_plan had more programs to fill a GPU with
        height = min(max(1, plan.threads * plan.each // plan.cols), triton.next_power_of_2(rows))
        while height > 1 and triton.cdiv(rows, height) < layout.FEW:
            height //= 2
    whole = n == parts * steps * plan.cols
    return Plan(triton.cdiv(rows, height) * parts, parts, steps, height, plan.cols, plan.each, whole)


@cached
def _forward_jobs(device: torch.device, *keys: Key) -> list[Job]:
    logits, target = specs(*keys)
    assert logits is not None and target is not None
    batch, positions, n = logits.shape
    rows, index = batch * positions, len(target.shape) == 2 and target.strides != ()
    at = _describe(logits.shape, logits, target)
    plan = _row_plan(rows, n, choice_of("categorical_forward", logits))
    shared = (*at.strides, *[0] * index, rows, positions, n, plan.parts)
    first = Job(
        _forward, (plan.programs,), plan.threads,
        (*shared, index, plan.steps, _group(plan, at, logits), *_constants(plan, at)),
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
    rows, index = batch * positions, len(target.shape) == 2 and target.strides != ()
    at = _describe(logits.shape, logits, target, grad_nll, grad)
    strides = [*at.strides[:3], 0, *at.strides[3:]] if index else at.strides
    plan = elementwise_plan(rows, n, choice_of("categorical_backward", logits))
    return Job(
        _backward, (plan.programs,), plan.threads,
        (*strides, rows, positions, n, index, exact(logits), *_constants(plan, at)),
    )  # fmt: skip


def categorical_forward(
    logits: Tensor, target: Tensor | Csr, *, nll: Tensor, lse: Tensor, total: Tensor
) -> None:
    """Fills nll, lse and total (batch, positions), which are dense, from logits (batch, positions, classes) and classes
    (batch, positions) or counts (batch, positions, classes). Class -100 is ignored, and others that do not exist have
    an nll of NaN."""
    if nll.numel() == 0 or logits.numel() == 0:
        nll.zero_()
        lse.fill_(-math.inf)
        total.zero_()
        return
    jobs = _forward_jobs(logits.device, key(logits), target_key(target))
    on, counts = pointers(target)
    partial = None
    if len(jobs) == 2:
        partial = torch.empty(jobs[0].scratch[0], dtype=torch.float32, device=logits.device)  # type: ignore[arg-type]
    for job in jobs:
        run(job, on, logits, counts, nll, lse, total, partial)


def categorical_backward(
    logits: Tensor, target: Tensor | Csr, lse: Tensor, total: Tensor, grad_nll: Tensor, *, grad_logits: Tensor
) -> None:
    """Fills grad_logits, of any strides, as those of the inputs are."""
    if logits.numel():
        keys = (key(logits), target_key(target), key(grad_nll), key(grad_logits))
        job, (on, counts) = _backward_job(logits.device, *keys), pointers(target)
        run(job, on, logits, counts, lse, total, grad_nll, grad_logits)
