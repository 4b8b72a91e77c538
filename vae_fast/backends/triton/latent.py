"""The op `latent`: z = mu + exp(logvar / 2) eps and KL(N(mu, exp logvar) || prior) per sample.

Forward reads mu and logvar once and writes z once for every draw; eps lives in registers. A program owns whole
samples (several short ones, or a long one tile by tile), so KL takes no second stage. Only samples of more than
LONG = 16384 elements are shared by programs: each leaves a float32 partial sum in a scratch buffer, and a tiny second
kernel adds them in a fixed order. The alternative, in which the last program to arrive adds them, saves that launch
but needs counters that are zero at the start: either a memset before each call (a launch again), or counters that
live on between calls, which two streams or a replayed CUDA graph could share. A second kernel has no such state.

Backward is elementwise and makes the noise again from rng_state. Gradients of a broadcast prior are summed down the
samples by each program, and again by the second kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import Clamp, Rows
from .formulas import clamp as clamped
from .formulas import exponential, scaled_square, unclamped
from .launch import Job, Key, cached, key, run, specs
from .layout import constants, describe, draw_steps, elementwise_plan, exact, lead, pair, row_sum_plan
from .noise import normals, read_state, row_words
from .sums import add, add_up, keep, kind, outputs, plan_gradients, strides, zeros
from .tile import elements, load, locate, read, step_of, store, write

Pair = tuple[Tensor | None, Tensor | None]


@triton.jit(do_not_specialize=["row_offset", "rows_per_draw", "rows", "parts", "draws"])
def _forward(
    mu, logvar, mu_p, logvar_p, noise, z, rng, kl, row_offset, rows_per_draw,
    mu_s, logvar_s, mu_p_s, logvar_p_s, noise_s, z_s, rng_s, kl_s, noise_draw, z_draw,
    lo, hi, rows, n, sizes, draws, parts,
    DRAWS: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr, CLEAN: tl.constexpr, PAIR: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    part = pid % parts
    row = (pid // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = row < rows
    if rng is not None:
        state = read_state(rng, rng_s, row, inside)
    if kl is not None:
        total = tl.zeros((ROWS, COLS), tl.float32)
    for step in range(STEPS):
        start = (part.to(tl.int64 if OFFSETS_64 else tl.int32) * STEPS + step) * COLS
        place, cols = elements(start, n, sizes, SWAP, COLS)
        mask = inside & (place < n // VEC * VEC)
        at = (row, cols, inside, mask)
        m = load(mu, mu_s, at, sizes, VEC)
        lv = clamped(load(logvar, logvar_s, at, sizes, VEC), lo, hi)
        first, second, _, rest = exponential(lv, EXACT)
        if kl is not None:
            if mu_p is None:
                term = 0.5 * m * m + rest
            else:
                lvp = load(logvar_p, logvar_p_s, at, sizes, VEC)
                square, _ = scaled_square(m - load(mu_p, mu_p_s, at, sizes, VEC), lvp)
                _, _, _, rest = exponential(lv - lvp, EXACT)
                term = square + rest
            if not CLEAN:
                term = tl.where(mask, term, 0.0)
            total += term
        if z is not None:
            z_at = locate(at, sizes, z_s, VEC)
            if noise is not None:
                eps_at = locate(at, sizes, noise_s, VEC)
            for i in range(DRAWS):
                draw = tl.program_id(1).to(tl.int64) * DRAWS + i
                live = draw < draws
                at = (row, cols, inside & live, mask & live)
                if noise is None:
                    eps = normals(
                        state, rng_s, draw, row, row_offset, rows_per_draw, start, n, sizes, PAIR, SWAP, ROWS, COLS
                    )  # fmt: skip
                else:
                    eps = read(noise + (eps_at + step_of(draw, noise_draw, VEC)), at)
                write(z + (z_at + step_of(draw, z_draw, VEC)), m + first * eps * second, at)
    if kl is not None:
        first_draw = tl.program_id(1) == 0  # the others make more draws of the same samples
        out = kl + (row * kl_s[0] + part * kl_s[1])
        tl.store(out, tl.sum(total, axis=1)[:, None], mask=inside & first_draw)


@triton.jit(do_not_specialize=["row_offset", "rows_per_draw", "rows", "parts"])
def _backward(
    mu, logvar, mu_p, logvar_p, noise, grad_z, rng, grad_kl, grad_mu, grad_logvar, grad_mu_p, grad_logvar_p,
    row_offset, rows_per_draw,
    mu_s, logvar_s, mu_p_s, logvar_p_s, noise_s, grad_z_s, grad_mu_s, grad_logvar_s, grad_mu_p_s, grad_logvar_p_s,
    rng_s, grad_kl_s, noise_draw, grad_z_draw, lo, hi, rows, n, sizes, parts,
    SUM_MU_P: tl.constexpr, SUM_LOGVAR_P: tl.constexpr,
    DRAWS: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr, PAIR: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    start = (pid % parts).to(tl.int64 if OFFSETS_64 else tl.int32) * COLS
    place, cols = elements(start, n, sizes, SWAP, COLS)
    sum_mu_p = zeros(SUM_MU_P, ROWS, COLS)
    sum_logvar_p = zeros(SUM_LOGVAR_P, ROWS, COLS)
    for step in range(STEPS):
        row = ((pid // parts).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = row < rows
        mask = inside & (place < n // VEC * VEC)
        at = (row, cols, inside, mask)
        raw = load(logvar, logvar_s, at, sizes, VEC)
        lv = clamped(raw, lo, hi)
        first, second, up, _ = exponential(lv, EXACT)
        d_mu = tl.zeros((ROWS, COLS), tl.float32)
        d_lv = tl.zeros((ROWS, COLS), tl.float32)
        if grad_z is not None:
            grad_z_at = locate(at, sizes, grad_z_s, VEC)
            if grad_logvar is not None:
                if noise is None:
                    state = read_state(rng, rng_s, row, inside)
                else:
                    eps_at = locate(at, sizes, noise_s, VEC)
            for i in range(DRAWS):
                draw = tl.program_id(1).to(tl.int64) + i  # the grid has one dim: this is i
                g = read(grad_z + (grad_z_at + step_of(draw, grad_z_draw, VEC)), at)
                d_mu += g
                if grad_logvar is not None:
                    if noise is None:
                        eps = normals(
                            state, rng_s, draw, row, row_offset, rows_per_draw, start, n, sizes,
                            PAIR, SWAP, ROWS, COLS,
                        )  # fmt: skip
                    else:
                        eps = read(noise + (eps_at + step_of(draw, noise_draw, VEC)), at)
                    d_lv += g * eps
            d_lv = 0.5 * d_lv * first * second
        if grad_kl is not None:
            g = tl.load(grad_kl + row * grad_kl_s[0], mask=inside, other=0)
            m = load(mu, mu_s, at, sizes, VEC)
            if mu_p is None:
                d_mu += g * m
                d_lv += g * up
            else:
                lvp = load(logvar_p, logvar_p_s, at, sizes, VEC)
                square, slope = scaled_square(m - load(mu_p, mu_p_s, at, sizes, VEC), lvp)
                _, _, up, _ = exponential(lv - lvp, EXACT)
                d_mu += g * slope
                d_lv += g * up
                d_lvp = -g * (up + square)
                sum_mu_p = add(SUM_MU_P, sum_mu_p, -g * slope, grad_mu_p, grad_mu_p_s, at, sizes, VEC)
                sum_logvar_p = add(
                    SUM_LOGVAR_P, sum_logvar_p, d_lvp, grad_logvar_p, grad_logvar_p_s, at, sizes, VEC
                )
        if grad_mu is not None:
            store(grad_mu, grad_mu_s, d_mu, at, sizes, VEC)
        if grad_logvar is not None:
            store(grad_logvar, grad_logvar_s, unclamped(raw, lo, hi, d_lv), at, sizes, VEC)
    keep(SUM_MU_P, sum_mu_p, grad_mu_p, pid, parts, place, cols, n)
    keep(SUM_LOGVAR_P, sum_logvar_p, grad_logvar_p, pid, parts, place, cols, n)


@cached
def _forward_job(device: torch.device, clamp: Clamp, *keys: Key) -> Job:
    mu, logvar, mu_p, logvar_p, noise, z, rng, kl = specs(*keys)
    assert mu is not None and logvar is not None
    draws, z_draw, z_s = lead(z, mu)
    _, noise_draw, noise_s = lead(noise, mu)
    at = describe(
        mu.shape, mu.strides, logvar.strides, mu_p and mu_p.strides, logvar_p and logvar_p.strides, noise_s, z_s,
        draws=(z_draw, noise_draw), free=rng is None,
    )  # fmt: skip
    rows = mu.shape[0]
    plan = elementwise_plan(rows, at.n) if kl is None else row_sum_plan(rows, at.n)
    each = draw_steps(draws, plan.programs)
    split = kl is not None and plan.parts > 1
    kl_s = (1, rows) if split else (kl.strides[0], 0) if kl is not None else ()
    # Elements past the end read as 0, and mu = logvar = 0 has no divergence from a prior of zeros.
    clean = clamp is None and all(len(s) != 1 for s in at.strides[:4])
    job = Job(
        _forward, (plan.programs, triton.cdiv(draws, each)), plan.threads,
        (*at.strides, rng.strides if rng is not None else (), kl_s, noise_draw, z_draw, *(clamp or (None, None)),
         rows, at.n, at.sizes, draws, plan.parts, each, plan.steps, exact(mu, logvar), clean, pair(at, mu, logvar, z),
         *constants(at, plan)),
    )  # fmt: skip
    job.scratch = [(plan.parts, rows) if split else None]
    return job


@cached
def _backward_job(device: torch.device, clamp: Clamp, *keys: Key) -> Job:
    mu, logvar, mu_p, logvar_p, noise, grad_z, rng, grad_kl, grad_mu, grad_logvar, *grad_prior = specs(*keys)
    assert mu is not None and logvar is not None
    draws, grad_z_draw, grad_z_s = lead(grad_z, mu)
    _, noise_draw, noise_s = lead(noise, mu)
    at = describe(
        mu.shape, mu.strides, logvar.strides, mu_p and mu_p.strides, logvar_p and logvar_p.strides, noise_s, grad_z_s,
        grad_mu and grad_mu.strides, grad_logvar and grad_logvar.strides, *(strides(g, mu.shape) for g in grad_prior),
        draws=(grad_z_draw, noise_draw), free=rng is None,
    )  # fmt: skip
    plan, scratch = plan_gradients(grad_prior, mu.shape, at.n)
    job = Job(
        _backward, (plan.programs,), plan.threads,
        (*at.strides, rng.strides if rng is not None else (), grad_kl.strides if grad_kl is not None else (),
         noise_draw, grad_z_draw, *(clamp or (None, None)), mu.shape[0], at.n, at.sizes, plan.parts,
         *(kind(g, mu.shape) for g in grad_prior), draws, plan.steps, exact(mu, logvar), pair(at, mu, logvar, grad_z),
         *constants(at, plan)),
    )  # fmt: skip
    job.scratch, job.order = scratch, at.order
    return job


def latent_forward(
    mu: Tensor,
    logvar: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: tuple[float, float] | None,
    *,
    z: Tensor | None,
    kl: Tensor | None,
    rows: Rows | None = None,
) -> None:
    """Fills z (batch, ...) or (draws, batch, ...) and kl (batch,), either of which may be None."""
    if z is not None and z.numel() == 0:
        z = None
    if mu.numel() == 0 and kl is not None:
        kl.zero_()
    if mu.numel() == 0 or (z is None and kl is None):
        return
    if z is None:
        rng_state = noise = None
    inputs = (mu, logvar, *(prior or (None, None)), noise, z, rng_state)
    job = _forward_job(mu.device, clamp and (clamp[0], clamp[1]), *map(key, inputs), key(kl))
    (out,) = outputs(job, (kl,), mu)
    run(job, mu, *inputs, out, *row_words(rows, mu.shape[0]))
    add_up(out, kl)


def latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
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
    rows: Rows | None = None,
) -> None:
    """Fills the gradients that are not None. A smaller gradient of the prior is a sum (see `sums`)."""
    grads_p = grad_prior or (None, None)
    if mu.numel() == 0 or grad_kl is None:  # a prior acts through KL alone
        for g in grads_p:
            if g is not None:
                g.zero_()
        grads_p = (None, None)
    if mu.numel() == 0 or all(g is None for g in (grad_mu, grad_logvar, *grads_p)):
        return
    if grad_z is not None and grad_z.numel() == 0:
        grad_z = None
    if grad_z is None:
        rng_state = noise = None
    inputs = (mu, logvar, *(prior or (None, None)), noise, grad_z, rng_state, grad_kl, grad_mu, grad_logvar)
    job = _backward_job(mu.device, clamp and (clamp[0], clamp[1]), *map(key, inputs), *map(key, grads_p))
    outs = outputs(job, grads_p, mu)
    run(job, mu, *inputs, *outs, *row_words(rows, mu.shape[0]))
    for out, g in zip(outs, grads_p, strict=True):
        add_up(out, g, job.order)
