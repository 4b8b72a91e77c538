"""The op `likelihood`: -log p(target | params) per sample.

Backward computes the gradient again from params and target. By bytes of N elements of s bytes each (float32 target):
forward reads 2 N s, backward reads 2 N s and writes N s, 5 N s in all. Taking the gradient in the forward pass would
read 2 N s and write N s there, and then must scale it by grad_nll, which is known only in backward: 2 N s more, so 5 N s
again, with N s of memory held in between, and with a forward pass that costs half as much again when nobody asks for
a gradient. A mean over the batch changes nothing: grad_nll is then one number (stride 0), but still known only later.
What would be fewer, 3 N s, is a forward pass that is told grad_nll; the fused head (linear_likelihood) does so.

The grids and loops do not know which likelihood they compute: a member is a pair of functions below.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .formulas import exp, log1p
from .sums import Sum, add, add_up, keep, zeros
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
    return 0.5 * (1.8378770664093453 + lv + far * far * exp(-lv, EXACT))


@triton.jit
def _gaussian_grads(mean, lv, x, g, EXACT: tl.constexpr):
    far = x - mean
    slope = far * exp(-lv, EXACT)
    return -g * slope, 0.5 * g * (1.0 - far * slope)


MEMBERS = {"bernoulli": (_bernoulli_nll, _bernoulli_grads), "gaussian": (_gaussian_nll, _gaussian_grads)}


@triton.jit
def _value(target, target_s, row, cols, inside, mask, sizes, VEC: tl.constexpr):
    x = load(target, target_s, row, cols, inside, mask, sizes, VEC)
    if target.dtype.element_ty == tl.uint8:
        x = x * (1.0 / 255.0)
    return x


@triton.jit(do_not_specialize=["rows", "parts"])
def _forward(
    first, first_s, second, second_s, target, target_s, nll, nll_s, rows, n, sizes, parts,
    NLL: tl.constexpr, STEPS: tl.constexpr, VEC: tl.constexpr, WIDE: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    part = pid % parts
    row = (pid // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = row < rows
    total = tl.zeros((ROWS, COLS), tl.float32)
    for step in range(STEPS):
        cols = (part.to(tl.int64 if WIDE else tl.int32) * STEPS + step) * COLS + tl.arange(0, COLS)[None, :]
        mask = inside & (cols < n // VEC * VEC)
        p = load(first, first_s, row, cols, inside, mask, sizes, VEC)
        q = None
        if second is not None:
            q = load(second, second_s, row, cols, inside, mask, sizes, VEC)
        x = _value(target, target_s, row, cols, inside, mask, sizes, VEC)
        total += tl.where(mask, NLL(p, q, x, EXACT), 0.0)
    tl.store(nll + row * nll_s[0] + part * nll_s[1], tl.sum(total, axis=1)[:, None], mask=inside)


@triton.jit(do_not_specialize=["rows", "parts"])
def _backward(
    first, first_s, second, second_s, target, target_s, grad_nll, grad_nll_s, grad_first, grad_first_s,
    grad_second, grad_second_s, rows, n, sizes, parts,
    GRADS: tl.constexpr, SUM_FIRST: tl.constexpr, SUM_SECOND: tl.constexpr,
    STEPS: tl.constexpr, VEC: tl.constexpr, WIDE: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    cols = (pid % parts).to(tl.int64 if WIDE else tl.int32) * COLS + tl.arange(0, COLS)[None, :]
    sum_first = zeros(SUM_FIRST, ROWS, COLS)
    sum_second = zeros(SUM_SECOND, ROWS, COLS)
    for step in range(STEPS):
        row = ((pid // parts).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = row < rows
        mask = inside & (cols < n // VEC * VEC)
        p = load(first, first_s, row, cols, inside, mask, sizes, VEC)
        q = None
        if second is not None:
            q = load(second, second_s, row, cols, inside, mask, sizes, VEC)
        x = _value(target, target_s, row, cols, inside, mask, sizes, VEC)
        g = tl.load(grad_nll + row * grad_nll_s[0], mask=inside, other=0)
        d_first, d_second = GRADS(p, q, x, g, EXACT)
        sum_first = add(SUM_FIRST, sum_first, d_first, grad_first, grad_first_s, row, cols, mask, sizes, VEC)
        sum_second = add(SUM_SECOND, sum_second, d_second, grad_second, grad_second_s, row, cols, mask, sizes, VEC)
    keep(SUM_FIRST, sum_first, grad_first, pid, parts, cols, n)
    keep(SUM_SECOND, sum_second, grad_second, pid, parts, cols, n)


def likelihood_forward(member: str, params: Sequence[Tensor], target: Tensor, *, nll: Tensor) -> None:
    """Fills nll (batch,). Every parameter has the target's shape (stride 0 where it is broadcast)."""
    if target.numel() == 0:
        nll.zero_()
        return
    first, second = (*params, None)[:2]
    rows = target.shape[0]
    at = launch.describe(target.shape, first.stride(), launch.strides(second), target.stride(), free=True)
    plan = launch.row_sum_plan(rows, at.n)
    out, out_s = nll, (nll.stride(0), 0)
    if plan.parts > 1:
        out, out_s = nll.new_empty((plan.parts, rows)), (1, rows)
    s_first, s_second, s_target = at.strides
    launch.run(
        _forward, (plan.programs,), target,
        first, s_first, second, s_second, target, s_target, out, out_s, rows, at.n, at.sizes, plan.parts,
        NLL=MEMBERS[member][0], STEPS=plan.steps, VEC=at.vec, WIDE=at.wide, EXACT=first.dtype is torch.float32,
        ROWS=plan.rows, COLS=plan.cols, num_warps=plan.warps,
    )  # fmt: skip
    if out is not nll:
        add_up(out, nll)


def likelihood_backward(
    member: str,
    params: Sequence[Tensor],
    target: Tensor,
    grad_nll: Tensor,
    *,
    grads: Sequence[Tensor | None],
) -> None:
    """Fills the gradients that are not None. A smaller one is a sum (see `sums.Sum`)."""
    outs = [Sum(g, target.shape) for g in (*grads, None)[:2]]
    if target.numel() == 0:
        for s in outs:
            s.zero()
    if target.numel() == 0 or not any(s.kind for s in outs):
        return
    first, second = (*params, None)[:2]
    rows = target.shape[0]
    at = launch.describe(
        target.shape, first.stride(), launch.strides(second), target.stride(), *(s.full_strides() for s in outs),
        free=True,
    )  # fmt: skip
    sums = any(s.summed for s in outs)
    plan = launch.column_sum_plan(rows, at.n) if sums else launch.elementwise_plan(rows, at.n)
    s_first, s_second, s_target, s_gfirst, s_gsecond = at.strides
    targets = [s.target(plan, at.n) for s in outs]
    launch.run(
        _backward, (plan.programs,), target,
        first, s_first, second, s_second, target, s_target, grad_nll, grad_nll.stride(),
        targets[0], s_gfirst, targets[1], s_gsecond, rows, at.n, at.sizes, plan.parts,
        GRADS=MEMBERS[member][1], SUM_FIRST=outs[0].kind, SUM_SECOND=outs[1].kind,
        STEPS=plan.steps, VEC=at.vec, WIDE=at.wide, EXACT=first.dtype is torch.float32,
        ROWS=plan.rows, COLS=plan.cols, num_warps=plan.warps,
    )  # fmt: skip
    for s in outs:
        s.finish(at)
