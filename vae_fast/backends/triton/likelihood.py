"""The op `likelihood`: -log p(target | params) per sample.

Backward computes the gradient again from params and target. By bytes, for N elements of s bytes each: forward reads
2 N s, backward reads 2 N s and writes N s, 5 N s in all. Taking the gradient in the forward pass would read 2 N s and
write N s there, and must scale it by grad_nll, which is known only in backward: 2 N s more, so 5 N s again, with N s
of memory held in between, and with a forward pass that costs half as much again when nobody asks for a gradient. A
mean over the batch changes nothing: grad_nll is then one number (stride 0), but still known only later. What would
be fewer, 3 N s, is a forward pass that is told grad_nll; the fused head (linear_likelihood) can do so.

The grids and loops do not know which likelihood they compute: a member is a pair of functions below.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .formulas import exp, log1p
from .launch import Job, Key, cached, key, run, specs
from .layout import constants, describe, exact, row_sum_plan
from .sums import add, add_up, keep, kind, outputs, plan_gradients, strides, zeros
from .tile import load


@triton.jit
def _bernoulli_nll(el, _, x, EXACT: tl.constexpr):
    return tl.maximum(el, 0.0, propagate_nan=tl.PropagateNan.ALL) - x * el + log1p(exp(-tl.abs(el), EXACT))


@triton.jit
def _bernoulli_grads(el, _, x, g, EXACT: tl.constexpr):
    # sigmoid(l) - x, from the side on which it does not cancel
    t = exp(-tl.abs(el), EXACT)
    s = t / (1.0 + t)
    return g * tl.where(el > 0, (1.0 - x) - s, s - x), 0.0


@triton.jit
def _gaussian_nll(mean, lv, x, EXACT: tl.constexpr):
    far = x - mean
    return 0.5 * (1.8378770664093453 + lv + far * far * exp(-lv, EXACT))  # log 2 pi


@triton.jit
def _gaussian_grads(mean, lv, x, g, EXACT: tl.constexpr):
    far = x - mean
    slope = far * exp(-lv, EXACT)
    return -g * slope, 0.5 * g * (1.0 - far * slope)


# (nll, grads) of one or two parameters; a gradient that does not exist is 0.0.
MEMBERS = {"bernoulli": (_bernoulli_nll, _bernoulli_grads), "gaussian": (_gaussian_nll, _gaussian_grads)}


@triton.jit
def _inputs(first, first_s, second, second_s, target, target_s, at, sizes, VEC: tl.constexpr):
    p = load(first, first_s, at, sizes, VEC)
    q = p
    if second is not None:
        q = load(second, second_s, at, sizes, VEC)
    x = load(target, target_s, at, sizes, VEC)
    if target.dtype.element_ty == tl.uint8:
        x = x * (1.0 / 255.0)
    return p, q, x


@triton.jit(do_not_specialize=["rows", "parts"])
def _forward(
    target, first, second, nll, target_s, first_s, second_s, nll_s, rows, n, sizes, parts,
    NLL: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr, VEC: tl.constexpr, SWAP: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    part = pid % parts
    row = (pid // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = row < rows
    total = tl.zeros((ROWS, COLS), tl.float32)
    for step in range(STEPS):
        cols = (part.to(tl.int64 if WIDE else tl.int32) * STEPS + step) * COLS + tl.arange(0, COLS)[None, :]
        mask = inside & (cols < n // VEC * VEC)
        at = (row, cols, inside, mask)
        p, q, x = _inputs(first, first_s, second, second_s, target, target_s, at, sizes, VEC)
        total += tl.where(mask, NLL(p, q, x, EXACT), 0.0)
    tl.store(nll + (row * nll_s[0] + part * nll_s[1]), tl.sum(total, axis=1)[:, None], mask=inside)


@triton.jit(do_not_specialize=["rows", "parts"])
def _backward(
    target, first, second, grad_nll, grad_first, grad_second,
    target_s, first_s, second_s, grad_first_s, grad_second_s, grad_nll_s, rows, n, sizes, parts,
    GRADS: tl.constexpr, SUM_FIRST: tl.constexpr, SUM_SECOND: tl.constexpr,
    STEPS: tl.constexpr, EXACT: tl.constexpr, VEC: tl.constexpr, SWAP: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    cols = (pid % parts).to(tl.int64 if WIDE else tl.int32) * COLS + tl.arange(0, COLS)[None, :]
    sum_first = zeros(SUM_FIRST, ROWS, COLS)
    sum_second = zeros(SUM_SECOND, ROWS, COLS)
    for step in range(STEPS):
        row = ((pid // parts).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = row < rows
        at = (row, cols, inside, inside & (cols < n // VEC * VEC))
        p, q, x = _inputs(first, first_s, second, second_s, target, target_s, at, sizes, VEC)
        g = tl.load(grad_nll + row * grad_nll_s[0], mask=inside, other=0)
        d_first, d_second = GRADS(p, q, x, g, EXACT)
        sum_first = add(SUM_FIRST, sum_first, d_first, grad_first, grad_first_s, at, sizes, VEC)
        sum_second = add(SUM_SECOND, sum_second, d_second, grad_second, grad_second_s, at, sizes, VEC)
    keep(SUM_FIRST, sum_first, grad_first, pid, parts, cols, cols, n)
    keep(SUM_SECOND, sum_second, grad_second, pid, parts, cols, cols, n)


@cached
def _forward_job(device: torch.device, member: str, *keys: Key) -> Job:
    target, first, second, nll = specs(*keys)
    assert target is not None and first is not None and nll is not None
    rows = target.shape[0]
    at = describe(target.shape, target.strides, first.strides, second and second.strides, free=True)
    plan = row_sum_plan(rows, at.n)
    nll_s = (nll.strides[0], 0) if plan.parts == 1 else (1, rows)
    job = Job(
        _forward, (plan.programs,), plan.threads,
        (*at.strides, nll_s, rows, at.n, at.sizes, plan.parts, MEMBERS[member][0], plan.steps, exact(first),
         *constants(at, plan)),
    )  # fmt: skip
    job.scratch = [None if plan.parts == 1 else (plan.parts, rows)]
    return job


@cached
def _backward_job(device: torch.device, member: str, *keys: Key) -> Job:
    target, first, second, grad_nll, *grads = specs(*keys)
    assert target is not None and first is not None and grad_nll is not None
    shape = target.shape
    at = describe(
        shape,
        target.strides,
        first.strides,
        second and second.strides,
        *(strides(g, shape) for g in grads),
        free=True,
    )
    plan, scratch = plan_gradients(grads, shape, at.n)
    job = Job(
        _backward, (plan.programs,), plan.threads,
        (*at.strides, grad_nll.strides, shape[0], at.n, at.sizes, plan.parts, MEMBERS[member][1],
         *(kind(g, shape) for g in grads), plan.steps, exact(first), *constants(at, plan)),
    )  # fmt: skip
    job.scratch, job.order = scratch, at.order
    return job


def _two(items: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    return (items[0], items[1]) if len(items) == 2 else (items[0], None)


def likelihood_forward(
    member: str,
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    *,
    nll: Tensor,
) -> None:
    """Fills nll (batch,). Every parameter has the target's shape (stride 0 where it is broadcast)."""
    if target.numel() == 0:
        nll.zero_()
        return
    inputs = (target, *_two(params))
    job = _forward_job(target.device, member, *map(key, inputs), key(nll))
    (out,) = outputs(job, (nll,), target)
    run(job, target, *inputs, out)
    add_up(out, nll)


def likelihood_backward(
    member: str,
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    grad_nll: Tensor,
    *,
    grads: Sequence[Tensor | None],
) -> None:
    """Fills the gradients that are not None. A smaller one is a sum (see `sums`)."""
    grads = _two(grads)
    if target.numel() == 0:
        for g in grads:
            if g is not None:
                g.zero_()
    if target.numel() == 0 or all(g is None for g in grads):
        return
    inputs = (target, *_two(params), grad_nll)
    job = _backward_job(target.device, member, *map(key, inputs), *map(key, grads))
    outs = outputs(job, grads, target)
    run(job, target, *inputs, *outs)
    for out, g in zip(outs, grads, strict=True):
        add_up(out, g, job.order)
