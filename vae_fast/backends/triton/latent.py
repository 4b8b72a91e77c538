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

from . import launch
from .formulas import clamp, exp, expm1, unclamped
from .noise import normals, read_state
from .sums import Sum, add, add_up, keep, zeros
from .tile import load, locate, read, store, write

Pair = tuple[Tensor | None, Tensor | None]


@triton.jit(do_not_specialize=["rows", "parts", "draws"])
def _forward(
    mu, mu_s, logvar, logvar_s, mu_p, mu_p_s, logvar_p, logvar_p_s, rng, rng_s, noise, noise_s, noise_draw,
    z, z_s, z_draw, kl, kl_s, lo, hi, rows, n, sizes, draws, parts,
    DRAWS: tl.constexpr, STEPS: tl.constexpr, VEC: tl.constexpr, PAIR: tl.constexpr, WIDE: tl.constexpr, EXACT: tl.constexpr,
    CLEAN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
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
        start = (part.to(tl.int64 if WIDE else tl.int32) * STEPS + step) * COLS
        cols = start + tl.arange(0, COLS)[None, :]
        mask = inside & (cols < n // VEC * VEC)
        m = load(mu, mu_s, row, cols, inside, mask, sizes, VEC)
        lv = clamp(load(logvar, logvar_s, row, cols, inside, mask, sizes, VEC), lo, hi)
        std = exp(lv, EXACT, 0.5)
        if kl is not None:
            if mu_p is None:
                term = m * m + (expm1(lv, std * std, EXACT) - lv)
            else:
                lvp = load(logvar_p, logvar_p_s, row, cols, inside, mask, sizes, VEC)
                far = m - load(mu_p, mu_p_s, row, cols, inside, mask, sizes, VEC)
                d = lv - lvp
                term = far * far * exp(-lvp, EXACT) + (expm1(d, exp(d, False), EXACT) - d)
            if not CLEAN:
                term = tl.where(mask, term, 0.0)
            total += term
        if z is not None:
            if noise is not None:
                eps_at = locate(row, cols, sizes, noise_s, VEC)
            z_at = locate(row, cols, sizes, z_s, VEC)
            for i in range(DRAWS):
                draw = tl.program_id(1).to(tl.int64) * DRAWS + i
                live = draw < draws
                if noise is None:
                    eps = normals(state, rng_s, draw, row, rows, start, PAIR, ROWS, COLS)
                else:
                    eps = read(noise + (eps_at + draw * (noise_draw // VEC * VEC)), inside & live, mask & live)
                write(z + (z_at + draw * (z_draw // VEC * VEC)), m + std * eps, mask & live)
    if kl is not None:
        first = tl.program_id(1) == 0  # the others make more draws of the same samples
        tl.store(kl + row * kl_s[0] + part * kl_s[1], 0.5 * tl.sum(total, axis=1)[:, None], mask=inside & first)


@triton.jit(do_not_specialize=["rows", "parts"])
def _backward(
    grad_z, grad_z_s, grad_z_draw, grad_kl, grad_kl_s, mu, mu_s, logvar, logvar_s, mu_p, mu_p_s,
    logvar_p, logvar_p_s, rng, rng_s, noise, noise_s, noise_draw, grad_mu, grad_mu_s, grad_logvar, grad_logvar_s,
    grad_mu_p, grad_mu_p_s, grad_logvar_p, grad_logvar_p_s, lo, hi, rows, n, sizes, parts,
    SUM_MU_P: tl.constexpr, SUM_LOGVAR_P: tl.constexpr, DRAWS: tl.constexpr, STEPS: tl.constexpr,
    VEC: tl.constexpr, PAIR: tl.constexpr, WIDE: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    start = (pid % parts).to(tl.int64 if WIDE else tl.int32) * COLS
    cols = start + tl.arange(0, COLS)[None, :]
    sum_mu_p = zeros(SUM_MU_P, ROWS, COLS)
    sum_logvar_p = zeros(SUM_LOGVAR_P, ROWS, COLS)
    for step in range(STEPS):
        row = ((pid // parts).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = row < rows
        mask = inside & (cols < n // VEC * VEC)
        raw = load(logvar, logvar_s, row, cols, inside, mask, sizes, VEC)
        lv = clamp(raw, lo, hi)
        std = exp(lv, EXACT, 0.5)
        d_mu = tl.zeros((ROWS, COLS), tl.float32)
        d_lv = tl.zeros((ROWS, COLS), tl.float32)
        if grad_z is not None:
            grad_z_at = locate(row, cols, sizes, grad_z_s, VEC)
            if grad_logvar is not None:
                if noise is None:
                    state = read_state(rng, rng_s, row, inside)
                else:
                    eps_at = locate(row, cols, sizes, noise_s, VEC)
            for i in range(DRAWS):
                draw = tl.program_id(1).to(tl.int64) + i  # the grid has one dim: this is i
                g = read(grad_z + (grad_z_at + draw * (grad_z_draw // VEC * VEC)), inside, mask)
                d_mu += g
                if grad_logvar is not None:
                    if noise is None:
                        eps = normals(state, rng_s, draw, row, rows, start, PAIR, ROWS, COLS)
                    else:
                        eps = read(noise + (eps_at + draw * (noise_draw // VEC * VEC)), inside, mask)
                    d_lv += g * eps
            d_lv *= 0.5 * std
        if grad_kl is not None:
            g = tl.load(grad_kl + row * grad_kl_s[0], mask=inside, other=0)
            m = load(mu, mu_s, row, cols, inside, mask, sizes, VEC)
            if mu_p is None:
                d_mu += g * m
                d_lv += 0.5 * g * expm1(lv, std * std, EXACT)
            else:
                lvp = load(logvar_p, logvar_p_s, row, cols, inside, mask, sizes, VEC)
                far = m - load(mu_p, mu_p_s, row, cols, inside, mask, sizes, VEC)
                d = lv - lvp
                slope = far * exp(-lvp, EXACT)
                up = expm1(d, exp(d, False), EXACT)
                d_mu += g * slope
                d_lv += 0.5 * g * up
                sum_mu_p = add(SUM_MU_P, sum_mu_p, -g * slope, grad_mu_p, grad_mu_p_s, row, cols, mask, sizes, VEC)
                sum_logvar_p = add(
                    SUM_LOGVAR_P, sum_logvar_p, -0.5 * g * (up + far * slope),
                    grad_logvar_p, grad_logvar_p_s, row, cols, mask, sizes, VEC,
                )  # fmt: skip
        if grad_mu is not None:
            store(grad_mu, grad_mu_s, d_mu, row, cols, mask, sizes, VEC)
        if grad_logvar is not None:
            store(grad_logvar, grad_logvar_s, unclamped(raw, lo, hi, d_lv), row, cols, mask, sizes, VEC)
    keep(SUM_MU_P, sum_mu_p, grad_mu_p, pid, parts, cols, n)
    keep(SUM_LOGVAR_P, sum_logvar_p, grad_logvar_p, pid, parts, cols, n)


def _exact(*tensors: Tensor) -> bool:
    return any(t.dtype is torch.float32 for t in tensors)


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
) -> None:
    """Fills z (batch, ...) or (draws, batch, ...) and kl (batch,), either of which may be None."""
    if z is not None and z.numel() == 0:
        z = None
    if mu.numel() == 0 and kl is not None:
        kl.zero_()
    if mu.numel() == 0 or (z is None and kl is None):
        return
    mu_p, logvar_p = prior or (None, None)
    lead = 0 if z is None else z.ndim - mu.ndim
    draws, z_draw, noise_draw = 1, 0, 0
    if lead:
        draws, z_draw = z.shape[0], z.stride(0)
        noise_draw = 0 if noise is None else noise.stride(0)
    rows = mu.shape[0]
    at = launch.describe(
        mu.shape, mu.stride(), logvar.stride(), launch.strides(mu_p), launch.strides(logvar_p),
        launch.rest(noise, lead), launch.rest(z, lead), draws=(z_draw, noise_draw),
        free=z is None or noise is not None,
    )  # fmt: skip
    plan = launch.elementwise_plan(rows, at.n) if kl is None else launch.row_sum_plan(rows, at.n)
    each = launch.draw_steps(draws, plan.programs)
    out, out_s = kl, () if kl is None else (kl.stride(0), 0)
    if kl is not None and plan.parts > 1:
        out, out_s = kl.new_empty((plan.parts, rows)), (1, rows)
    s_mu, s_lv, s_mp, s_lp, s_noise, s_z = at.strides
    # Elements past the end read as 0, and mu = logvar = 0 has no divergence from a prior of zeros.
    clean = clamp is None and all(len(s) != 1 for s in (s_mu, s_lv, s_mp, s_lp))
    launch.run(
        _forward, (plan.programs, triton.cdiv(draws, each)), mu,
        mu, s_mu, logvar, s_lv, mu_p, s_mp, logvar_p, s_lp,
        None if z is None or noise is not None else rng_state, () if rng_state is None else rng_state.stride(),
        noise, s_noise, noise_draw, z, s_z, z_draw, out, out_s, *(clamp or (None, None)),
        rows, at.n, at.sizes, draws, plan.parts,
        DRAWS=each, STEPS=plan.steps, VEC=at.vec, PAIR=launch.pair(at, mu, logvar, z), WIDE=at.wide, EXACT=_exact(mu, logvar),
        CLEAN=clean, ROWS=plan.rows, COLS=plan.cols, num_warps=plan.warps,
    )  # fmt: skip
    if out is not kl and kl is not None:
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
) -> None:
    """Fills the gradients that are not None. A smaller gradient of the prior is a sum (see `sums.Sum`)."""
    if grad_z is not None and grad_z.numel() == 0:
        grad_z = None
    grads_p = [Sum(g, mu.shape) for g in grad_prior or (None, None)]
    if mu.numel() == 0 or grad_kl is None:  # a prior acts through KL alone
        for s in grads_p:
            s.zero()
        grads_p = [Sum(None, mu.shape), Sum(None, mu.shape)]
    if mu.numel() == 0 or not (grad_mu is not None or grad_logvar is not None or any(s.kind for s in grads_p)):
        return
    mu_p, logvar_p = prior or (None, None)
    lead = 0 if grad_z is None else grad_z.ndim - mu.ndim
    draws, grad_z_draw, noise_draw = 1, 0, 0
    if lead:
        draws, grad_z_draw = grad_z.shape[0], grad_z.stride(0)
        noise_draw = 0 if noise is None else noise.stride(0)
    rows = mu.shape[0]
    at = launch.describe(
        mu.shape, mu.stride(), logvar.stride(), launch.rest(grad_z, lead), launch.strides(mu_p),
        launch.strides(logvar_p), launch.rest(noise, lead), launch.strides(grad_mu), launch.strides(grad_logvar),
        *(s.full_strides() for s in grads_p), draws=(grad_z_draw, noise_draw),
        free=grad_z is None or noise is not None,
    )  # fmt: skip
    sums = any(s.summed for s in grads_p)
    plan = launch.column_sum_plan(rows, at.n) if sums else launch.elementwise_plan(rows, at.n)
    s_mu, s_lv, s_gz, s_mp, s_lp, s_noise, s_gmu, s_glv, s_gmp, s_glp = at.strides
    outs = [s.target(plan, at.n) for s in grads_p]
    launch.run(
        _backward, (plan.programs,), mu,
        grad_z, s_gz, grad_z_draw, grad_kl, () if grad_kl is None else grad_kl.stride(), mu, s_mu, logvar, s_lv,
        mu_p, s_mp, logvar_p, s_lp, rng_state, () if rng_state is None else rng_state.stride(),
        noise, s_noise, noise_draw, grad_mu, s_gmu, grad_logvar, s_glv, outs[0], s_gmp, outs[1], s_glp,
        *(clamp or (None, None)), rows, at.n, at.sizes, plan.parts,
        SUM_MU_P=grads_p[0].kind, SUM_LOGVAR_P=grads_p[1].kind, DRAWS=draws, STEPS=plan.steps,
        VEC=at.vec, PAIR=launch.pair(at, mu, logvar, grad_z), WIDE=at.wide, EXACT=_exact(mu, logvar),
        ROWS=plan.rows, COLS=plan.cols, num_warps=plan.warps,
    )  # fmt: skip
    for s in grads_p:
        s.finish(at)
