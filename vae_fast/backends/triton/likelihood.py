"""The op `likelihood`: -log p(target | params) per sample.

Backward computes the gradient again from params and target. By bytes, for N elements of s bytes each: forward reads
2 N s, backward reads 2 N s and writes N s, 5 N s in all. Taking the gradient in the forward pass would read 2 N s and
write N s there, and must scale it by grad_nll, which is known only in backward: 2 N s more, so 5 N s again, with N s
of memory held in between, and with a forward pass that costs half as much again when nobody asks for a gradient. A
mean over the batch changes nothing: grad_nll is then one number (stride 0), but still known only later. What would
be fewer, 3 N s, is a forward pass that is told grad_nll; the fused head (linear_likelihood) can do so.

The grids and loops do not know which likelihood they compute: each is a pair of functions in `likelihoods`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import Rows
from .launch import Job, Key, cached, key, run, specs
from .layout import choice_of, constants, describe, elementwise_plan, exact, pair, per_element, row_sum_plan
from .likelihoods import LIKELIHOODS
from .noise import row_words, uniforms
from .sums import add, add_up, keep, kind, outputs, plan_gradients, strides, zeros
from .tile import elements, load, load_each, of_samples, samples, store


@triton.jit
def _inputs(
    target, parameters, rng, row_offset, target_s, parameters_s, rng_s, at, start, n, sizes,
    LEVELS: tl.constexpr, PAIR: tl.constexpr, VEC: tl.constexpr, SWAP: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The parameters and the target."""
    params = ()
    for i in tl.static_range(len(parameters)):
        params += (load(parameters[i], parameters_s[i], at, sizes, VEC),)  # type: ignore[assignment]
    x = load(target, target_s, at, sizes, VEC)
    if LEVELS and target.dtype.element_ty == tl.uint8:  # x / 255, rounded as a division would
        level = x * (1.0 / 255.0)
        x = tl.fma(tl.fma(level, -255.0, x), 1.0 / 255.0, level)
    if rng is not None:
        u = uniforms(rng, rng_s, at, row_offset, start, n, sizes, PAIR, SWAP, ROWS, COLS)
        x = tl.where(x == x, tl.where(u < x, 1.0, 0.0), x)  # NaN stays NaN
    return params, x


@triton.jit
def _counted_only(slopes, counted):
    masked = ()
    for i in tl.static_range(len(slopes)):
        masked += (tl.where(counted, slopes[i], 0.0),)  # type: ignore[assignment]
    return masked


# Triton 3.6 overwrites a kernel's argument `params` in its dispatch, so kernels say `parameters`; and it compiles no
# function of a tuple that holds None, not even len(grads).
@triton.jit(do_not_specialize=["row_offset", "rows"])
def _forward(
    target, parameters, kept, rng, nll, row_offset, target_s, parameters_s, kept_s, rng_s, nll_s, rows, n, sizes,
    NLL: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr,
    PAIR: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    part = pid % PARTS
    first, local, inside = samples(pid // PARTS, rows, OFFSETS_64, ROWS)
    total = tl.full((ROWS, COLS), -0.0, tl.float32)  # which the first addition leaves out
    for step in range(STEPS):
        start = (part.to(tl.int64 if OFFSETS_64 else tl.int32) * STEPS + step) * COLS
        cols, there = elements(start, n, sizes, WHOLE, VEC, SWAP, COLS)
        at = (first, local, cols, inside, there, inside & there)
        params, x = _inputs(
            target, parameters, rng, row_offset, target_s, parameters_s, rng_s, at, start, n, sizes,
            LEVELS, PAIR, VEC, SWAP, ROWS, COLS,
        )  # fmt: skip
        counted = tl.broadcast_to(there, (ROWS, COLS))
        if kept is not None:
            counted = counted & (load(kept, kept_s, at, sizes, VEC) > 0)
        terms = tl.where(counted, NLL(params, x, EXACT), 0.0)
        if EACH:
            store(nll, nll_s, terms, at, sizes, VEC)
        else:
            total += terms
    if not EACH:
        out = of_samples(nll + part * nll_s[1], nll_s[0], first, local)
        tl.store(out, tl.sum(total, axis=1)[:, None], mask=inside)


@triton.jit(do_not_specialize=["row_offset", "rows"])
def _backward(
    target, parameters, kept, rng, grad_nll, grads, row_offset,
    target_s, parameters_s, kept_s, grads_s, rng_s, grad_nll_s, rows, n, sizes,
    GRADS: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, KINDS: tl.constexpr,
    STEPS: tl.constexpr, EXACT: tl.constexpr, PAIR: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    start = (pid % PARTS).to(tl.int64 if OFFSETS_64 else tl.int32) * COLS
    cols, there = elements(start, n, sizes, WHOLE, VEC, SWAP, COLS)
    sums = ()
    for i in tl.static_range(len(KINDS)):
        sums += (zeros(KINDS[i], ROWS, COLS),)  # type: ignore[assignment]
    for step in range(STEPS):
        first, local, inside = samples((pid // PARTS) * STEPS + step, rows, OFFSETS_64, ROWS)
        at = (first, local, cols, inside, there, inside & there)
        params, x = _inputs(
            target, parameters, rng, row_offset, target_s, parameters_s, rng_s, at, start, n, sizes,
            LEVELS, PAIR, VEC, SWAP, ROWS, COLS,
        )  # fmt: skip
        if EACH:
            g = load(grad_nll, grad_nll_s, at, sizes, VEC)
        else:
            g = load_each(grad_nll, grad_nll_s[0], at)
        slopes = GRADS(params, x, g, EXACT)
        if kept is not None:
            slopes = _counted_only(slopes, load(kept, kept_s, at, sizes, VEC) > 0)
        added = ()
        for i in tl.static_range(len(KINDS)):
            added += (add(KINDS[i], sums[i], slopes[i], grads[i], grads_s[i], at, sizes, VEC),)  # type: ignore[assignment]
        sums = added
    for i in tl.static_range(len(KINDS)):
        keep(KINDS[i], sums[i], grads[i], pid, there, cols, n, PARTS)


@cached
def _forward_job(device: torch.device, likelihood: str, params: tuple[Key, ...], *keys: Key) -> Job:
    given = [p for p in specs(*params) if p is not None]
    target, kept, rng, nll = specs(*keys)
    assert target is not None and nll is not None
    rows = target.shape[0]
    each = per_element(nll, target.shape)
    tensors = [x and x.strides for x in (target, *given, kept)]
    # bits are drawn in row-major order
    at = describe(target.shape, *tensors, nll.strides if each else None, free=rng is None)
    target_s, *params_s, kept_s, nll_s = at.strides
    plan = (elementwise_plan if each else row_sum_plan)(
        rows, at.n, choice_of("likelihood_forward", *given, target, part=likelihood)
    )
    split = plan.parts > 1 and not each
    if not each:
        nll_s = (1, rows) if split else (nll.strides[0], 0)
    value, _, levels = LIKELIHOODS[likelihood]
    job = Job(
        _forward, (plan.programs,), plan.threads,
        (target_s, tuple(params_s), kept_s, rng.strides if rng else (), nll_s, rows, at.n, at.sizes,
         value, levels, each, plan.steps, exact(given[0]), rng is not None and pair(at, target, *given),
         *constants(at, plan)),
    )  # fmt: skip
    job.scratch = [(plan.parts, rows) if split else None]
    return job


@cached
def _backward_job(
    device: torch.device, likelihood: str, params: tuple[Key, ...], grads: tuple[Key, ...], *keys: Key
) -> Job:
    given, wanted = [p for p in specs(*params) if p is not None], specs(*grads)
    target, kept, rng, grad_nll = specs(*keys)
    assert target is not None and grad_nll is not None
    shape = target.shape
    each = per_element(grad_nll, shape)
    inputs = [x and x.strides for x in (target, *given, kept)]
    upstream = grad_nll.strides if each else None
    at = describe(shape, *inputs, upstream, *(strides(g, shape) for g in wanted), free=rng is None)
    target_s, *params_s = at.strides[: 1 + len(given)]
    kept_s, grad_nll_s, *grads_s = at.strides[1 + len(given) :]
    choice = choice_of("likelihood_backward", *given, target, part=likelihood)
    plan, scratch = plan_gradients(wanted, shape, at.n, choice)
    _, slopes, levels = LIKELIHOODS[likelihood]
    job = Job(
        _backward, (plan.programs,), plan.threads,
        (target_s, tuple(params_s), kept_s, tuple(grads_s), rng.strides if rng else (),
         grad_nll_s if each else grad_nll.strides, shape[0],
         at.n, at.sizes, slopes, levels, each, tuple(kind(g, shape) for g in wanted), plan.steps,
         exact(given[0]), rng is not None and pair(at, target, *given), *constants(at, plan)),
    )  # fmt: skip
    job.scratch, job.order = scratch, at.order
    return job


def likelihood_forward(
    likelihood: str,
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    *,
    nll: Tensor,
    rows: Rows | None = None,
) -> None:
    """Fills nll (batch,) or (batch, ...). Every parameter and the mask have the target's shape (stride 0 where they are
    broadcast). Given an rng_state, the target is the probability of a 1, and the bits drawn from it count."""
    if target.numel() == 0:
        nll.zero_()
        return
    tensors = (target, mask, rng_state, nll)
    job = _forward_job(target.device, likelihood, tuple(map(key, params)), *map(key, tensors))
    (out,) = outputs(job, (nll,), target)
    run(job, target, target, tuple(params), mask, rng_state, out, row_words(rows, target.shape[0])[0])
    add_up(out, nll)


def likelihood_backward(
    likelihood: str,
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    grad_nll: Tensor,
    *,
    grads: Sequence[Tensor | None],
    rows: Rows | None = None,
) -> None:
    """Fills the gradients that are not None. A smaller one is a sum (see `sums`)."""
    if target.numel() == 0:
        for g in grads:
            if g is not None:
                g.zero_()
    if target.numel() == 0 or all(g is None for g in grads):
        return
    keys = tuple(map(key, params)), tuple(map(key, grads))
    job = _backward_job(target.device, likelihood, *keys, *map(key, (target, mask, rng_state, grad_nll)))
    outs = outputs(job, grads, target)
    place = row_words(rows, target.shape[0])[0]
    run(job, target, target, tuple(params), mask, rng_state, grad_nll, tuple(outs), place)
    for out, g in zip(outs, grads, strict=True):
        add_up(out, g, job.order)
