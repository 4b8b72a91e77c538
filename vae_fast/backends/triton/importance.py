"""The op `importance`: draws of N(mu, exp logvar) and their log weights, log p(z) - log q(z).

Forward: a program has whole samples and some of their draws, and sums each draw as `latent` sums KL. What the draws
share stays in registers where a sample is one tile; longer ones are walked along for every draw. Backward is
elementwise, with all draws of an element in one program. csrc/formulas/importance.h has the formulas.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import Clamp
from .formulas import clamp as clamped
from .formulas import exp, expm1, exponential, factors, unclamped
from .launch import Job, Key, cached, key, run, specs
from .layout import Strides, choice_of, constants, describe, draw_steps, exact, lead, pair, row_sum_plan
from .noise import eps_of, read_state, state_strides
from .sums import add, add_up, keep, kind, outputs, plan_gradients, strides, zeros
from .tile import elements, load, load_each, locate, of_samples, origin, read, samples, step_of, store, write

Pair = tuple[Tensor | None, Tensor | None]


@triton.jit
def _proposal(m, lv, mu_p, logvar_p, mu_p_s, logvar_p_s, at, sizes, VEC: tl.constexpr, EXACT: tl.constexpr):
    """What all draws of an element share: distance, scaled, h, expm1(h), sigma in two factors; with a prior 1/sigma_p
    as m s^2, whether sigma eps may leave float32 where eps sigma / sigma_p does not, and that ratio."""
    first, second, _, _ = exponential(lv, EXACT)
    if mu_p is None:
        h = 0.5 * lv
        return m, m, h, expm1(h), first, second
    else:
        half = 0.5 * load(logvar_p, logvar_p_s, at, sizes, VEC)
        distance = m - load(mu_p, mu_p_s, at, sizes, VEC)
        inverse, root = factors(-half, 2)
        h = 0.5 * lv - half
        wide = (lv > 170.0) & (h <= 80.0)
        ratio = exp(clamped(h, -100.0, 80.0), True)
        return (
            distance,
            distance * root * inverse * root,
            h,
            expm1(h),
            first,
            second,
            inverse,
            root,
            wide,
            ratio,
        )


@triton.jit
def _drawn(q, eps):
    """b, u and eps sigma / sigma_p."""
    spread = eps * q[4] * q[5]
    b = q[0] + spread
    if len(q) > 6:
        spread = tl.where(q[8], eps * q[9], spread * q[7] * q[6] * q[7])
        b = tl.where(q[8], q[1] + spread, b * q[7] * q[6] * q[7])
    near = tl.abs(q[2]) <= 0.5
    u = tl.fma(q[3], eps, q[1])
    return (
        tl.where(near, u + eps, b),
        tl.where(near, u, b - eps),
        tl.where(near, tl.fma(q[3], eps, eps), spread),
    )


@triton.jit
def _over_std(x, q):
    """x / sigma_p"""
    if len(q) == 6:
        return x
    else:
        return x * q[7] * q[6] * q[7]


@triton.jit
def _times_ratio(x, q):
    """x sigma / sigma_p"""
    if len(q) == 6:
        return x * q[4] * q[5]
    else:
        return x * q[4] * q[7] * q[5] * q[6] * q[7]


@triton.jit(do_not_specialize=["rows", "draws", "each", "first_draw"])
def _forward(
    mu, logvar, mu_p, logvar_p, noise, z, rng, weights, first_draw,
    mu_s, logvar_s, mu_p_s, logvar_p_s, noise_s, z_s, rng_s, weights_s, noise_draw, z_draw,
    lo, hi, rows, n, sizes, draws, each, STEPS: tl.constexpr, EXACT: tl.constexpr, PAIR: tl.constexpr,
    PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    part = pid % PARTS
    first_row, local, inside = samples(pid // PARTS, rows, OFFSETS_64, ROWS)
    begin = part.to(tl.int64 if OFFSETS_64 else tl.int32) * STEPS * COLS
    if STEPS == 1:
        cols, there = elements(begin, n, sizes, WHOLE, VEC, SWAP, COLS)
        at = (first_row, local, cols, inside, there, inside & there)
        m = load(mu, mu_s, at, sizes, VEC)
        lv = clamped(load(logvar, logvar_s, at, sizes, VEC), lo, hi)
        q = _proposal(m, lv, mu_p, logvar_p, mu_p_s, logvar_p_s, at, sizes, VEC, EXACT)
    draw = tl.program_id(1).to(tl.int64) * each
    end = tl.minimum(draw + each, draws)
    while draw < end:
        total = tl.full((ROWS, COLS), -0.0, tl.float32)
        for step in range(STEPS):
            start = begin + step * COLS
            if STEPS > 1:
                cols, there = elements(start, n, sizes, WHOLE, VEC, SWAP, COLS)
                at = (first_row, local, cols, inside, there, inside & there)
                m = load(mu, mu_s, at, sizes, VEC)
                lv = clamped(load(logvar, logvar_s, at, sizes, VEC), lo, hi)
                q = _proposal(m, lv, mu_p, logvar_p, mu_p_s, logvar_p_s, at, sizes, VEC, EXACT)
            state = None
            eps_at = None
            if noise is None:
                state = read_state(rng, rng_s, at, rows)
            else:
                eps_at = origin(noise, noise_s, at, VEC) + locate(at, sizes, noise_s, VEC)
            eps = eps_of(
                eps_at, state, rng_s, first_draw + draw, noise_draw, at,
                start, n, sizes, PAIR, VEC, SWAP, ROWS, COLS,
            )  # fmt: skip
            _, u, _ = _drawn(q, eps)
            term = q[2] - u * tl.fma(0.5, u, eps)
            total += tl.where(there, term, 0.0)
            if z is not None:
                z_at = origin(z, z_s, at, VEC) + locate(at, sizes, z_s, VEC)
                write(z_at + step_of(draw, z_draw, VEC), m + q[4] * eps * q[5], at)
        sums = tl.sum(total, axis=1)[:, None]
        to = weights + draw * weights_s[1] + part * weights_s[2]
        tl.store(of_samples(to, weights_s[0], first_row, local), sums, mask=inside)
        draw += 1


@triton.jit(do_not_specialize=["rows", "draws", "first_draw"])
def _backward(
    mu, logvar, mu_p, logvar_p, noise, grad_z, rng, grad_weights, grad_mu, grad_logvar, grad_mu_p, grad_logvar_p,
    first_draw,
    mu_s, logvar_s, mu_p_s, logvar_p_s, noise_s, grad_z_s, grad_mu_s, grad_logvar_s, grad_mu_p_s, grad_logvar_p_s,
    rng_s, grad_weights_s, noise_draw, grad_z_draw, lo, hi, rows, n, sizes, draws, PATH: tl.constexpr,
    SUM_MU_P: tl.constexpr, SUM_LOGVAR_P: tl.constexpr,
    STEPS: tl.constexpr, EXACT: tl.constexpr, PAIR: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    start = (pid % PARTS).to(tl.int64 if OFFSETS_64 else tl.int32) * COLS
    cols, there = elements(start, n, sizes, WHOLE, VEC, SWAP, COLS)
    sum_mu_p = zeros(SUM_MU_P, ROWS, COLS)
    sum_logvar_p = zeros(SUM_LOGVAR_P, ROWS, COLS)
    for step in range(STEPS):
        first_row, local, inside = samples((pid // PARTS) * STEPS + step, rows, OFFSETS_64, ROWS)
        at = (first_row, local, cols, inside, there, inside & there)
        raw = load(logvar, logvar_s, at, sizes, VEC)
        lv = clamped(raw, lo, hi)
        m = load(mu, mu_s, at, sizes, VEC)
        q = _proposal(m, lv, mu_p, logvar_p, mu_p_s, logvar_p_s, at, sizes, VEC, EXACT)
        near = tl.abs(q[2]) <= 0.5
        state = None
        eps_at = None
        if noise is None:
            state = read_state(rng, rng_s, at, rows)
        else:
            eps_at = origin(noise, noise_s, at, VEC) + locate(at, sizes, noise_s, VEC)
        d_mu = tl.full((ROWS, COLS), -0.0, tl.float32)
        d_lv = tl.full((ROWS, COLS), -0.0, tl.float32)
        d_z = tl.full((ROWS, COLS), -0.0, tl.float32)  # grad_z eps
        d_mp = tl.full((ROWS, COLS), -0.0, tl.float32)
        d_lvp = tl.full((ROWS, COLS), -0.0, tl.float32)
        draw = tl.cast(0, tl.int64)
        while draw < draws:
            eps = eps_of(
                eps_at, state, rng_s, first_draw + draw, noise_draw, at,
                start, n, sizes, PAIR, VEC, SWAP, ROWS, COLS,
            )  # fmt: skip
            if grad_weights is not None:
                g = load_each(grad_weights + draw * grad_weights_s[1], grad_weights_s[0], at)
                b, u, spread = _drawn(q, eps)
                slope = _over_std(b, q)
                if PATH:
                    toward = tl.where(near, -tl.fma(q[3], b, u), eps - _times_ratio(b, q))
                    of_q = tl.where(near, toward, eps) / q[4] / q[5]
                    d_mu += g * (of_q - tl.where(near, 0.0, slope))
                    d_lv += g * (0.5 * eps * toward)
                else:
                    d_mu -= g * slope
                    d_lv += g * tl.fma(-0.5 * spread, b, 0.5)
                d_mp += g * slope
                d_lvp += g * tl.fma(0.5 * b, b, -0.5)
            if grad_z is not None:
                grad_z_at = origin(grad_z, grad_z_s, at, VEC) + locate(at, sizes, grad_z_s, VEC)
                g_z = read(grad_z_at + step_of(draw, grad_z_draw, VEC), at)
                d_mu += g_z
                d_z += g_z * eps
            draw += 1
        if grad_z is not None:
            d_lv += 0.5 * d_z * q[4] * q[5]
        if mu_p is not None:
            sum_mu_p = add(SUM_MU_P, sum_mu_p, d_mp, grad_mu_p, grad_mu_p_s, at, sizes, VEC)
            sum_logvar_p = add(
                SUM_LOGVAR_P, sum_logvar_p, d_lvp, grad_logvar_p, grad_logvar_p_s, at, sizes, VEC
            )
        if grad_mu is not None:
            store(grad_mu, grad_mu_s, d_mu, at, sizes, VEC)
        if grad_logvar is not None:
            store(grad_logvar, grad_logvar_s, unclamped(raw, lo, hi, d_lv), at, sizes, VEC)
    keep(SUM_MU_P, sum_mu_p, grad_mu_p, pid, there, cols, n, PARTS)
    keep(SUM_LOGVAR_P, sum_logvar_p, grad_logvar_p, pid, there, cols, n, PARTS)


@cached
def _forward_job(device: torch.device, clamp: Clamp, *keys: Key) -> Job:
    mu, logvar, mu_p, logvar_p, noise, z, rng, weights = specs(*keys)
    assert mu is not None and logvar is not None and weights is not None
    _, z_draw, z_s = lead(z, mu)
    _, noise_draw, noise_s = lead(noise, mu)
    draws, rows = weights.shape
    at = describe(
        mu.shape, mu.strides, logvar.strides, mu_p and mu_p.strides, logvar_p and logvar_p.strides, noise_s, z_s,
        draws=(z_draw, noise_draw), free=rng is None,
    )  # fmt: skip
    plan = row_sum_plan(rows, at.n, choice_of("importance_forward", mu, logvar))
    each = draw_steps(draws, plan.programs)
    is_split = plan.parts > 1
    weights_s = (1, rows, draws * rows) if is_split else (weights.strides[1], weights.strides[0], 0)
    job = Job(
        _forward, (plan.programs, triton.cdiv(draws, each)), plan.threads,
        (*at.strides, state_strides(rng), weights_s, noise_draw, z_draw, *(clamp or (None, None)), rows, at.n,
         at.sizes, draws, each, plan.steps, exact(mu, logvar), pair(at, mu, logvar, z), *constants(at, plan)),
    )  # fmt: skip
    job.scratch = [(plan.parts, draws * rows) if is_split else None]
    return job


@cached
def _backward_job(device: torch.device, clamp: Clamp, path: bool, *keys: Key) -> Job:
    mu, logvar, mu_p, logvar_p, noise, grad_z, rng, grad_weights, grad_mu, grad_logvar, *grad_prior = specs(
        *keys
    )
    assert mu is not None and logvar is not None
    draws, grad_z_draw, grad_z_s = lead(grad_z, mu)
    grad_weights_s: Strides = ()
    if grad_weights is not None:
        draws, grad_weights_s = grad_weights.shape[0], grad_weights.strides[::-1]
    _, noise_draw, noise_s = lead(noise, mu)
    at = describe(
        mu.shape, mu.strides, logvar.strides, mu_p and mu_p.strides, logvar_p and logvar_p.strides, noise_s, grad_z_s,
        grad_mu and grad_mu.strides, grad_logvar and grad_logvar.strides, *(strides(g, mu.shape) for g in grad_prior),
        draws=(grad_z_draw, noise_draw), free=rng is None,
    )  # fmt: skip
    plan, scratch = plan_gradients(grad_prior, mu.shape, at.n, choice_of("importance_backward", mu, logvar))
    job = Job(
        _backward, (plan.programs,), plan.threads,
        (*at.strides, state_strides(rng), grad_weights_s, noise_draw, grad_z_draw,
         *(clamp or (None, None)), mu.shape[0], at.n, at.sizes, draws, path,
         *(kind(g, mu.shape) for g in grad_prior), plan.steps, exact(mu, logvar), pair(at, mu, logvar, grad_z),
         *constants(at, plan)),
    )  # fmt: skip
    job.scratch, job.order = scratch, at.order
    return job


def importance_forward(
    mu: Tensor,
    logvar: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: tuple[float, float] | None,
    *,
    z: Tensor | None,
    weights: Tensor,
    first_draw: int = 0,
) -> None:
    """Fills weights (draws, batch), and z (draws, batch, ...) unless it is None."""
    if mu.numel() == 0:
        weights.zero_()
        return
    inputs = (mu, logvar, *(prior or (None, None)), noise, z, rng_state)
    job = _forward_job(mu.device, clamp and (clamp[0], clamp[1]), *map(key, inputs), key(weights))
    (out,) = outputs(job, (weights,), mu)
    run(job, mu, *inputs, out, first_draw)
    add_up(out, weights)


def importance_backward(
    grad_z: Tensor | None,
    grad_weights: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: tuple[float, float] | None,
    *,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
    grad_prior: Pair | None,
    path_derivative: bool = False,
    first_draw: int = 0,
) -> None:
    """Fills the gradients that are not None. A smaller gradient of the prior is a sum (see `sums`)."""
    if grad_weights is None:  # through which alone a prior acts
        prior = None
    grads_p = grad_prior or (None, None)
    if mu.numel() == 0 or prior is None:
        for g in grads_p:
            if g is not None:
                g.zero_()
        grads_p = (None, None)
    if mu.numel() == 0 or all(g is None for g in (grad_mu, grad_logvar, *grads_p)):
        return
    inputs = (
        mu, logvar, *(prior or (None, None)), noise, grad_z, rng_state, grad_weights, grad_mu, grad_logvar,
    )  # fmt: skip
    bounds = clamp and (clamp[0], clamp[1])
    job = _backward_job(mu.device, bounds, path_derivative, *map(key, inputs), *map(key, grads_p))
    outs = outputs(job, grads_p, mu)
    run(job, mu, *inputs, *outs, first_draw)
    for out, g in zip(outs, grads_p, strict=True):
        add_up(out, g, job.order)
