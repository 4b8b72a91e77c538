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

from ...likelihoods.csr import Csr
from .csr import pointers, stored, target_key
from .launch import Job, Key, cached, key, run, specs
from .layout import (
    Strides,
    after_lead,
    choice_of,
    constants,
    describe,
    draw_parts,
    elementwise_plan,
    exact,
    lead_all,
    pair,
    per_element,
    row_sum_plan,
)
from .likelihoods import LIKELIHOODS
from .noise import state_strides, uniforms
from .sums import (
    ELEMENT,
    add,
    add_up,
    begin,
    keep,
    kind,
    outputs,
    plan_gradients,
    share_draws,
    strides,
    zeros,
)
from .tile import elements, load, load_upstream, of_samples, samples, step_of, store


@triton.jit
def _inputs(
    target, parameters, rng, target_s, parameters_s, rng_s, at, start, n, sizes,
    LEVELS: tl.constexpr, PAIR: tl.constexpr, VEC: tl.constexpr, SWAP: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The parameters and the target."""
    params = _parameters(parameters, parameters_s, at, sizes, VEC)
    x = _target(target, rng, target_s, rng_s, at, start, n, sizes, LEVELS, PAIR, VEC, SWAP, ROWS, COLS)
    return params, x


@triton.jit
def _parameters(parameters, parameters_s, at, sizes, VEC: tl.constexpr):
    params = ()
    for i in tl.static_range(len(parameters)):
        params += (load(parameters[i], parameters_s[i], at, sizes, VEC),)  # type: ignore[assignment]
    return params


@triton.jit
def _of_draw(parameters, strides, draw, VEC: tl.constexpr):
    """Where the draw's parameters are."""
    moved = ()
    for i in tl.static_range(len(parameters)):
        moved += (parameters[i] + step_of(draw, strides[i], VEC),)  # type: ignore[assignment]
    return moved


@triton.jit
def _target(
    target, rng, target_s, rng_s, at, start, n, sizes,
    LEVELS: tl.constexpr, PAIR: tl.constexpr, VEC: tl.constexpr, SWAP: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    if len(target_s) == 0:
        x = stored(target, at[0] + at[1], start, at[2], at[4], n, ROWS, COLS)
    else:
        x = load(target, target_s, at, sizes, VEC)
    if LEVELS and target.dtype.element_ty == tl.uint8:  # x / 255, rounded as a division would
        level = x * (1.0 / 255.0)
        x = tl.fma(tl.fma(level, -255.0, x), 1.0 / 255.0, level)
    if rng is not None:
        u = uniforms(rng, rng_s, at, start, n, sizes, PAIR, SWAP, ROWS, COLS)
        x = tl.where(x == x, tl.where(u < x, 1.0, 0.0), x)  # NaN stays NaN
    return x


@triton.jit
def _counted_only(slopes, counted):
    masked = ()
    for i in tl.static_range(len(slopes)):
        masked += (tl.where(counted, slopes[i], 0.0),)  # type: ignore[assignment]
    return masked


@triton.jit
def _losses(
    target, parameters, kept, rng, nll, target_s, parameters_s, kept_s, rng_s, nll_s, rows, n, sizes,
    NLL: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr,
    PAIR: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Those of one draw."""
    pid = tl.program_id(0)
    part = pid % PARTS
    first, local, inside = samples(pid // PARTS, rows, OFFSETS_64, ROWS)
    total = tl.full((ROWS, COLS), -0.0, tl.float32)  # which the first addition leaves out
    for step in range(STEPS):
        start = (part.to(tl.int64 if OFFSETS_64 else tl.int32) * STEPS + step) * COLS
        cols, there = elements(start, n, sizes, WHOLE, VEC, SWAP, COLS)
        at = (first, local, cols, inside, there, inside & there)
        params, x = _inputs(
            target, parameters, rng, target_s, parameters_s, rng_s, at, start, n, sizes,
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


# Triton 3.6 overwrites a kernel's argument `params` in its dispatch, so kernels say `parameters`; and it compiles no
# function of a tuple that holds None, not even len(grads).
@triton.jit(do_not_specialize=["draws", "each", "rows"])
def _forward(
    target, parameters, kept, rng, nll, target_s, parameters_s, kept_s, rng_s, nll_s,
    draws, each, parameters_d, nll_d, rows, n, sizes,
    NLL: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr,
    PAIR: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    if draws is None:
        _losses(
            target, parameters, kept, rng, nll, target_s, parameters_s, kept_s, rng_s, nll_s,
            rows, n, sizes, NLL, LEVELS, EACH, STEPS, EXACT, PAIR, PARTS, WHOLE, VEC, SWAP, OFFSETS_64, ROWS, COLS,
        )  # fmt: skip
    else:
        draw = tl.program_id(1).to(tl.int64) * each
        end = tl.minimum(draw + each, draws)
        while draw < end:
            _losses(
                target, _of_draw(parameters, parameters_d, draw, VEC), kept, rng,
                nll + step_of(draw, nll_d, VEC if EACH else 1),
                target_s, parameters_s, kept_s, rng_s, nll_s,
                rows, n, sizes, NLL, LEVELS, EACH, STEPS, EXACT, PAIR, PARTS, WHOLE, VEC, SWAP, OFFSETS_64, ROWS, COLS,
            )  # fmt: skip
            draw += 1


@triton.jit(do_not_specialize=["draws", "each", "rows"])
def _backward(
    target, parameters, kept, rng, grad_nll, grads,
    target_s, parameters_s, kept_s, grads_s, rng_s, grad_nll_s,
    draws, each, parameters_d, grads_d, grad_nll_d, rows, n, sizes,
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
        if draws is None:
            params, x = _inputs(
                target, parameters, rng, target_s, parameters_s, rng_s, at, start, n, sizes,
                LEVELS, PAIR, VEC, SWAP, ROWS, COLS,
            )  # fmt: skip
            g = load_upstream(grad_nll, grad_nll_s, at, sizes, EACH, VEC)
            slopes = GRADS(params, x, g, EXACT)
            if kept is not None:
                slopes = _counted_only(slopes, load(kept, kept_s, at, sizes, VEC) > 0)
            added = ()
            for i in tl.static_range(len(KINDS)):
                added += (add(KINDS[i], sums[i], slopes[i], grads[i], grads_s[i], at, sizes, VEC),)  # type: ignore[assignment]
            sums = added
        else:
            x = _target(
                target, rng, target_s, rng_s, at, start, n, sizes, LEVELS, PAIR, VEC, SWAP, ROWS, COLS
            )  # fmt: skip
            begun = ()
            for i in tl.static_range(len(KINDS)):
                begun += (begin(KINDS[i], sums[i], ROWS, COLS),)  # type: ignore[assignment]
            sums = begun
            draw = tl.program_id(1).to(tl.int64) * each
            end = tl.minimum(draw + each, draws)
            while draw < end:
                params = _parameters(
                    _of_draw(parameters, parameters_d, draw, VEC), parameters_s, at, sizes, VEC
                )
                upstream = grad_nll + step_of(draw, grad_nll_d, VEC if EACH else 1)
                g = load_upstream(upstream, grad_nll_s, at, sizes, EACH, VEC)
                slopes = GRADS(params, x, g, EXACT)
                if kept is not None:
                    slopes = _counted_only(slopes, load(kept, kept_s, at, sizes, VEC) > 0)
                added = ()
                for i in tl.static_range(len(KINDS)):
                    if KINDS[i] == 1:
                        out = grads[i] + step_of(draw, grads_d[i], VEC)
                        added += (add(1, sums[i], slopes[i], out, grads_s[i], at, sizes, VEC),)  # type: ignore[assignment]
                    else:
                        added += (add(KINDS[i], sums[i], slopes[i], grads[i], grads_s[i], at, sizes, VEC),)  # type: ignore[assignment]
                sums = added
                draw += 1
            for i in tl.static_range(len(KINDS)):
                if KINDS[i] == 4:
                    store(grads[i], grads_s[i], sums[i], at, sizes, VEC)
    if draws is not None:  # partial sums of their own for each part of the draws
        pid += tl.program_id(1) * tl.num_programs(0)
    for i in tl.static_range(len(KINDS)):
        keep(KINDS[i], sums[i], grads[i], pid, there, cols, n, PARTS)


@cached
def _forward_job(
    device: torch.device, likelihood: str, draws: int | None, params: tuple[Key, ...], *keys: Key
) -> Job:
    given = [p for p in specs(*params) if p is not None]
    target, kept, rng, nll = specs(*keys)
    assert target is not None and nll is not None
    rows = target.shape[0]
    of_draw: Strides = ()
    nll_d = None
    if draws is not None:
        of_draw, given = lead_all(given, target)
        nll_d, nll = nll.strides[0], after_lead(nll)
    each = per_element(nll, target.shape)
    tensors = [x and (x.strides or None) for x in (target, *given, kept)]
    steps_of_draws = of_draw if not each or nll_d is None else (*of_draw, nll_d)
    # bits are drawn in row-major order
    at = describe(
        target.shape, *tensors, nll.strides if each else None, draws=steps_of_draws, free=rng is None
    )
    target_s, *params_s, kept_s, nll_s = at.strides
    plan = (elementwise_plan if each else row_sum_plan)(
        rows, at.n, choice_of("likelihood_forward", *given, target, part=likelihood)
    )
    split = plan.parts > 1 and not each
    sums = rows * (draws or 1)
    if not each:
        nll_s = (1, sums) if split else (nll.strides[0], 0)
        nll_d = rows if split and draws is not None else nll_d
    value, _, levels = LIKELIHOODS[likelihood]
    parts, steps = draw_parts(draws, plan.programs)
    job = Job(
        _forward, (plan.programs, parts), plan.threads,
        (target_s, tuple(params_s), kept_s, state_strides(rng), nll_s, draws, steps, of_draw, nll_d,
         rows, at.n, at.sizes,
         value, levels, each, plan.steps, exact(given[0]), rng is not None and pair(at, target, *given),
         *constants(at, plan)),
    )  # fmt: skip
    job.scratch = [(plan.parts, sums) if split else None]
    return job


@cached
def _backward_job(
    device: torch.device,
    likelihood: str,
    draws: int | None,
    params: tuple[Key, ...],
    grads: tuple[Key, ...],
    *keys: Key,
) -> Job:
    given, wanted = [p for p in specs(*params) if p is not None], specs(*grads)
    target, kept, rng, grad_nll = specs(*keys)
    assert target is not None and grad_nll is not None
    shape = target.shape
    of_draw: Strides = ()
    of_grads: Strides = ()
    grad_nll_d = None
    kinds = tuple(kind(g, shape, draws is not None) for g in wanted)
    if draws is not None:
        of_draw, given = lead_all(given, target)
        grad_nll_d, grad_nll = grad_nll.strides[0], after_lead(grad_nll)
        of_grads = tuple(
            g.strides[0] if g is not None and k == ELEMENT else 0 for g, k in zip(wanted, kinds, strict=True)
        )
    each = per_element(grad_nll, shape)
    inputs = [x and (x.strides or None) for x in (target, *given, kept)]
    upstream = grad_nll.strides if each else None
    steps_of_draws = (
        (*of_draw, *of_grads) if not each or grad_nll_d is None else (*of_draw, *of_grads, grad_nll_d)
    )
    at = describe(
        shape, *inputs, upstream, *(strides(g, shape) for g in wanted), draws=steps_of_draws, free=rng is None
    )
    target_s, *params_s = at.strides[: 1 + len(given)]
    kept_s, grad_nll_s, *grads_s = at.strides[1 + len(given) :]
    choice = choice_of("likelihood_backward", *given, target, part=likelihood)
    plan, scratch = plan_gradients(wanted, shape, at.n, choice, draws)
    parts, steps = share_draws(draws, kinds, plan)
    _, slopes, levels = LIKELIHOODS[likelihood]
    job = Job(
        _backward, (plan.programs, parts), plan.threads,
        (target_s, tuple(params_s), kept_s, tuple(grads_s), state_strides(rng),
         grad_nll_s if each else grad_nll.strides, draws, steps, of_draw, of_grads, grad_nll_d, shape[0],
         at.n, at.sizes, slopes, levels, each, kinds, plan.steps,
         exact(given[0]), rng is not None and pair(at, target, *given), *constants(at, plan)),
    )  # fmt: skip
    job.scratch, job.order = scratch, at.order
    return job


def likelihood_forward(
    likelihood: str,
    params: Sequence[Tensor],
    target: Tensor | Csr,
    mask: Tensor | None,
    rng_state: Tensor | None,
    *,
    nll: Tensor,
    draws: int | None = None,
) -> None:
    """Fills nll (batch,) or (batch, ...). Every parameter and the mask have the target's shape (stride 0 where they are
    broadcast). Given an rng_state, the target is the probability of a 1, and the bits drawn from it count."""
    if target.numel() == 0 or draws == 0:
        nll.zero_()
        return
    keys = (target_key(target), key(mask), key(rng_state), key(nll))
    job = _forward_job(target.device, likelihood, draws, tuple(map(key, params)), *keys)
    (out,) = outputs(job, (nll,), nll)
    run(job, *pointers(target), tuple(params), mask, rng_state, out)
    add_up(out, nll)


def likelihood_backward(
    likelihood: str,
    params: Sequence[Tensor],
    target: Tensor | Csr,
    mask: Tensor | None,
    rng_state: Tensor | None,
    grad_nll: Tensor,
    *,
    grads: Sequence[Tensor | None],
    draws: int | None = None,
) -> None:
    """Fills the gradients that are not None. A smaller one is a sum (see `sums`)."""
    is_empty = target.numel() == 0 or draws == 0
    if is_empty:
        for g in grads:
            if g is not None:
                g.zero_()
    if is_empty or all(g is None for g in grads):
        return
    keys = tuple(map(key, params)), tuple(map(key, grads))
    job = _backward_job(
        target.device, likelihood, draws, *keys, target_key(target), *map(key, (mask, rng_state, grad_nll))
    )
    outs = outputs(job, grads, grad_nll)
    run(job, *pointers(target), tuple(params), mask, rng_state, grad_nll, tuple(outs))
    for out, g in zip(outs, grads, strict=True):
        add_up(out, g, job.order)
