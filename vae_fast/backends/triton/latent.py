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

from ..contract import Clamp, Parametrization
from .formulas import clamp as clamped
from .formulas import exponential, scaled_square, unclamped
from .launch import Job, Key, cached, key, run, specs
from .layout import (
    choice_of,
    constants,
    describe,
    draw_steps,
    elementwise_plan,
    exact,
    lead,
    pair,
    per_element,
    row_sum_plan,
)
from .noise import eps_of, read_state, state_strides
from .parametrization import kl_slopes, sample_of, soft_clamp, times_std_slope
from .sums import add, add_up, keep, kind, outputs, plan_gradients, strides, zeros
from .tile import (
    elements,
    load,
    load_upstream,
    locate,
    of_samples,
    origin,
    read,
    samples,
    step_of,
    store,
    write,
)

Pair = tuple[Tensor | None, Tensor | None]


@triton.jit
def _affine(z, shift, scale, shift_s, scale_s, at, sizes, VEC: tl.constexpr):
    if shift is not None:
        z = z - load(shift, shift_s, at, sizes, VEC)
    if scale is not None:
        z = z * load(scale, scale_s, at, sizes, VEC)
    return z


@triton.jit(do_not_specialize=["rows", "draws", "each"])
def _forward(
    mu, logvar, mu_p, logvar_p, noise, z, shift, scale, rng, kl,
    mu_s, logvar_s, mu_p_s, logvar_p_s, noise_s, z_s, shift_s, scale_s, rng_s, kl_s, noise_draw, z_draw,
    epsilon, soft, FORM: tl.constexpr, AS_Q: tl.constexpr, lo, hi, rows, n, sizes, draws, each, EACH: tl.constexpr,
    ONE: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr, CLEAN: tl.constexpr, PAIR: tl.constexpr,
    PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    part = pid % PARTS
    first_row, local, inside = samples(pid // PARTS, rows, OFFSETS_64, ROWS)
    total = tl.full((ROWS, COLS), -0.0, tl.float32)  # which the first addition leaves out
    for step in range(STEPS):
        start = (part.to(tl.int64 if OFFSETS_64 else tl.int32) * STEPS + step) * COLS
        cols, there = elements(start, n, sizes, WHOLE, VEC, SWAP, COLS)
        at = (first_row, local, cols, inside, there, inside & there)
        m = load(mu, mu_s, at, sizes, VEC)
        lv = clamped(load(logvar, logvar_s, at, sizes, VEC), lo, hi)
        if FORM is None:
            first, second, _, rest = exponential(lv, EXACT)
        else:
            m, _ = soft_clamp(m, soft)
            lv, _ = soft_clamp(lv, soft)
            mp = None
            rp = None
            if kl is not None and mu_p is not None:
                mp = load(mu_p, mu_p_s, at, sizes, VEC)
                rp = load(logvar_p, logvar_p_s, at, sizes, VEC)
                if AS_Q:
                    mp, _ = soft_clamp(mp, soft)
                    rp, _ = soft_clamp(clamped(rp, lo, hi), soft)
            first, second, rest = sample_of(m, lv, mp, rp, epsilon, FORM, AS_Q)
        if kl is not None:
            if FORM is not None:
                term = rest
            elif mu_p is None:
                term = 0.5 * m * m + rest
            else:
                lvp = load(logvar_p, logvar_p_s, at, sizes, VEC)
                square, _ = scaled_square(m - load(mu_p, mu_p_s, at, sizes, VEC), lvp)
                _, _, _, rest = exponential(lv - lvp, EXACT)
                term = square + rest
            if EACH:
                if ONE or tl.program_id(1) == 0:  # the others make more draws of the same samples
                    store(kl, kl_s, term, at, sizes, VEC)
            else:
                if not CLEAN:
                    term = tl.where(there, term, 0.0)
                total += term
        if z is not None:
            state = None
            if noise is None:
                eps_at = None
                state = read_state(rng, rng_s, at, rows)
            else:
                eps_at = origin(noise, noise_s, at, VEC) + locate(at, sizes, noise_s, VEC)
            z_at = origin(z, z_s, at, VEC) + locate(at, sizes, z_s, VEC)
            if ONE:
                eps = eps_of(
                    eps_at, state, rng_s, tl.cast(0, tl.int64), noise_draw, at,
                    start, n, sizes, PAIR, VEC, SWAP, ROWS, COLS,
                )  # fmt: skip
                value = _affine(m + first * eps * second, shift, scale, shift_s, scale_s, at, sizes, VEC)
                write(z_at, value, at)
            else:
                draw = tl.program_id(1).to(tl.int64) * each
                end = tl.minimum(draw + each, draws)
                while draw < end:  # at run time: one compiled kernel serves any number of draws
                    eps = eps_of(
                        eps_at, state, rng_s, draw, noise_draw, at,
                        start, n, sizes, PAIR, VEC, SWAP, ROWS, COLS,
                    )  # fmt: skip
                    value = _affine(m + first * eps * second, shift, scale, shift_s, scale_s, at, sizes, VEC)
                    write(z_at + step_of(draw, z_draw, VEC), value, at)
                    draw += 1
    if kl is not None and not EACH:
        sums = tl.sum(total, axis=1)[:, None]
        if ONE or tl.program_id(1) == 0:
            tl.store(of_samples(kl + part * kl_s[1], kl_s[0], first_row, local), sums, mask=inside)


@triton.jit(do_not_specialize=["rows", "draws"])
def _backward(
    mu, logvar, mu_p, logvar_p, noise, grad_z, scale, rng, grad_kl, grad_mu, grad_logvar, grad_mu_p, grad_logvar_p,
    mu_s, logvar_s, mu_p_s, logvar_p_s, noise_s, grad_z_s, scale_s,
    grad_mu_s, grad_logvar_s, grad_mu_p_s, grad_logvar_p_s,
    rng_s, grad_kl_s, noise_draw, grad_z_draw, epsilon, soft, FORM: tl.constexpr, AS_Q: tl.constexpr,
    lo, hi, rows, n, sizes, draws,
    SUM_MU_P: tl.constexpr, SUM_LOGVAR_P: tl.constexpr,
    EACH: tl.constexpr, ONE: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr, PAIR: tl.constexpr,
    PARTS: tl.constexpr, WHOLE: tl.constexpr,
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
        if FORM is None:
            first, second, up, _ = exponential(lv, EXACT)
        else:
            lv, raw_slope = soft_clamp(lv, soft)
        d_mu = tl.full((ROWS, COLS), -0.0, tl.float32)
        d_lv = tl.full((ROWS, COLS), -0.0, tl.float32)
        if grad_z is not None:
            state = None
            eps_at = None
            if grad_logvar is not None:
                if noise is None:
                    state = read_state(rng, rng_s, at, rows)
                else:
                    eps_at = origin(noise, noise_s, at, VEC) + locate(at, sizes, noise_s, VEC)
            grad_z_at = origin(grad_z, grad_z_s, at, VEC) + locate(at, sizes, grad_z_s, VEC)
            if ONE:
                d_mu = read(grad_z_at, at)
                if d_mu.shape[1] == 1:
                    d_mu += tl.full((ROWS, COLS), -0.0, tl.float32)
                if grad_logvar is not None:
                    d_lv = d_mu * eps_of(
                        eps_at, state, rng_s, tl.cast(0, tl.int64), noise_draw, at,
                        start, n, sizes, PAIR, VEC, SWAP, ROWS, COLS,
                    )  # fmt: skip
            else:
                draw = tl.cast(0, tl.int64)
                while draw < draws:
                    g = read(grad_z_at + step_of(draw, grad_z_draw, VEC), at)
                    d_mu += g
                    if grad_logvar is not None:
                        d_lv += g * eps_of(
                            eps_at, state, rng_s, draw, noise_draw, at,
                            start, n, sizes, PAIR, VEC, SWAP, ROWS, COLS,
                        )  # fmt: skip
                    draw += 1
            if FORM is None:
                d_lv = 0.5 * d_lv * first * second
            else:
                if scale is not None:
                    factor = load(scale, scale_s, at, sizes, VEC)
                    d_mu = d_mu * factor
                    d_lv = d_lv * factor
                d_lv = times_std_slope(d_lv, lv, epsilon, FORM)
        if FORM is not None:
            given_mu = load(mu, mu_s, at, sizes, VEC)
            m, mu_slope = soft_clamp(given_mu, soft)
            if grad_kl is not None:
                g = load_upstream(grad_kl, grad_kl_s, at, sizes, EACH, VEC)
                if mu_p is None:
                    by_mu, by_raw, _ = kl_slopes(m, lv, None, None, epsilon, FORM, AS_Q)
                else:
                    mp = load(mu_p, mu_p_s, at, sizes, VEC)
                    given_rp = load(logvar_p, logvar_p_s, at, sizes, VEC)
                    rp = given_rp
                    if AS_Q:
                        mp, mp_slope = soft_clamp(mp, soft)
                        rp, rp_slope = soft_clamp(clamped(rp, lo, hi), soft)
                    by_mu, by_raw, by_rp = kl_slopes(m, lv, mp, rp, epsilon, FORM, AS_Q)
                    d_mp = -g * by_mu
                    d_rp = g * by_rp
                    if AS_Q:
                        d_mp = d_mp * mp_slope
                        d_rp = unclamped(given_rp, lo, hi, d_rp * rp_slope)
                    sum_mu_p = add(SUM_MU_P, sum_mu_p, d_mp, grad_mu_p, grad_mu_p_s, at, sizes, VEC)
                    sum_logvar_p = add(
                        SUM_LOGVAR_P, sum_logvar_p, d_rp, grad_logvar_p, grad_logvar_p_s, at, sizes, VEC
                    )
                d_mu += g * by_mu
                d_lv += g * by_raw
            d_mu = d_mu * mu_slope
            d_lv = d_lv * raw_slope
        elif grad_kl is not None:
            g = load_upstream(grad_kl, grad_kl_s, at, sizes, EACH, VEC)
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
    keep(SUM_MU_P, sum_mu_p, grad_mu_p, pid, there, cols, n, PARTS)
    keep(SUM_LOGVAR_P, sum_logvar_p, grad_logvar_p, pid, there, cols, n, PARTS)


Form = tuple[float | None, float | None, str | None, bool]  # epsilon, soft, FORM, AS_Q


def _form(form: Parametrization | None, *affine: Tensor | None) -> Form:
    """What the kernels are told; a plain log-variance that is shifted or scaled is a form, too."""
    if form is None:
        if all(t is None for t in affine):
            return None, None, None, False
        form = Parametrization()
    name = f"exact {form.name}" if form.has_exact_logvar else form.name
    return form.epsilon, form.soft_clamp, name, form.of_prior


@cached
def _forward_job(device: torch.device, clamp: Clamp, form: Form, *keys: Key) -> Job:
    mu, logvar, mu_p, logvar_p, noise, z, shift, scale, rng, kl = specs(*keys)
    assert mu is not None and logvar is not None
    draws, z_draw, z_s = lead(z, mu)
    _, noise_draw, noise_s = lead(noise, mu)
    each_kl = per_element(kl, mu.shape)
    at = describe(
        mu.shape, mu.strides, logvar.strides, mu_p and mu_p.strides, logvar_p and logvar_p.strides, noise_s, z_s,
        shift and shift.strides, scale and scale.strides, kl.strides if kl is not None and each_kl else None,
        draws=(z_draw, noise_draw), free=rng is None,
    )  # fmt: skip
    rows = mu.shape[0]
    choice = choice_of("latent_forward", mu, logvar)
    plan = (elementwise_plan if kl is None or each_kl else row_sum_plan)(rows, at.n, choice)
    each = draw_steps(draws, plan.programs)
    *strides_, kl_s = at.strides
    split = kl is not None and plan.parts > 1 and not each_kl
    if kl is not None and not each_kl:
        kl_s = (1, rows) if split else (kl.strides[0], 0)
    # Elements past the end read as 0, and mu = logvar = 0 has no divergence from a prior of zeros.
    clean = clamp is None and form[2] is None and all(len(s) != 1 for s in at.strides[:4])
    job = Job(
        _forward, (plan.programs, triton.cdiv(draws, each)), plan.threads,
        (*strides_, state_strides(rng), kl_s, noise_draw, z_draw, *form,
         *(clamp or (None, None)), rows, at.n, at.sizes, draws, each, each_kl, draws == 1,
         plan.steps, exact(mu, logvar), clean, pair(at, mu, logvar, z),
         *constants(at, plan)),
    )  # fmt: skip
    job.scratch = [(plan.parts, rows) if split else None]
    return job


@cached
def _backward_job(device: torch.device, clamp: Clamp, form: Form, *keys: Key) -> Job:
    mu, logvar, mu_p, logvar_p, noise, grad_z, scale, rng, grad_kl, grad_mu, grad_logvar, *grad_prior = specs(
        *keys
    )
    assert mu is not None and logvar is not None
    draws, grad_z_draw, grad_z_s = lead(grad_z, mu)
    _, noise_draw, noise_s = lead(noise, mu)
    each_kl = per_element(grad_kl, mu.shape)
    at = describe(
        mu.shape, mu.strides, logvar.strides, mu_p and mu_p.strides, logvar_p and logvar_p.strides, noise_s, grad_z_s,
        scale and scale.strides, grad_kl.strides if grad_kl is not None and each_kl else None,
        grad_mu and grad_mu.strides, grad_logvar and grad_logvar.strides, *(strides(g, mu.shape) for g in grad_prior),
        draws=(grad_z_draw, noise_draw), free=rng is None,
    )  # fmt: skip
    plan, scratch = plan_gradients(grad_prior, mu.shape, at.n, choice_of("latent_backward", mu, logvar))
    job = Job(
        _backward, (plan.programs,), plan.threads,
        (*at.strides[:7], *at.strides[8:], state_strides(rng),
         at.strides[7] if each_kl else grad_kl.strides if grad_kl is not None else (),
         noise_draw, grad_z_draw, *form, *(clamp or (None, None)), mu.shape[0], at.n, at.sizes, draws,
         *(kind(g, mu.shape) for g in grad_prior), each_kl, draws == 1, plan.steps, exact(mu, logvar),
         pair(at, mu, logvar, grad_z), *constants(at, plan)),
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
    form: Parametrization | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    """Fills z (batch, ...) or (draws, batch, ...), and kl (batch,) or (batch, ...): either may be None."""
    if z is not None and z.numel() == 0:
        z = None
    if mu.numel() == 0 and kl is not None:
        kl.zero_()
    if mu.numel() == 0 or (z is None and kl is None):
        return
    if z is None:
        rng_state = noise = shift = scale = None
    inputs = (mu, logvar, *(prior or (None, None)), noise, z, shift, scale, rng_state)
    told = _form(form, shift, scale)
    job = _forward_job(mu.device, clamp and (clamp[0], clamp[1]), told, *map(key, inputs), key(kl))
    (out,) = outputs(job, (kl,), mu)
    run(job, mu, *inputs, out)
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
    form: Parametrization | None = None,
    scale: Tensor | None = None,
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
        rng_state = noise = scale = None
    inputs = (
        mu,
        logvar,
        *(prior or (None, None)),
        noise,
        grad_z,
        scale,
        rng_state,
        grad_kl,
        grad_mu,
        grad_logvar,
    )
    told = _form(form, scale)
    job = _backward_job(
        mu.device, clamp and (clamp[0], clamp[1]), told, *map(key, inputs), *map(key, grads_p)
    )
    outs = outputs(job, grads_p, mu)
    run(job, mu, *inputs, *outs)
    for out, g in zip(outs, grads_p, strict=True):
        add_up(out, g, job.order)
