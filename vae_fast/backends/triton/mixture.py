"""The op `mixture`: -log p(pixels) of a mixture of discretized logistics (PixelCNN++, Salimans et al. 2017).

A program takes a block of pixels and walks along their components with a running log-sum-exp, so that nothing is padded
and any number of components fits into registers. Backward walks twice: what the posterior of a component is divided by
is known only at the end, and a parameter read again comes from the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import layout
from .formulas import divide, exp
from .launch import Job, Key, Spec, cached, key, run, specs
from .layout import exact
from .likelihoods.discretized_logistic import discretized_logistic_nll, discretized_logistic_slopes
from .sums import add_up, outputs

THREADS = 128
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _tanh(x, EXACT: tl.constexpr):
    """tanh x and its derivative. A mean's error counts in units of a scale, which may be small: rounded but little."""
    size = tl.abs(x)
    z = x * x
    e = exp(-2.0 * size, EXACT)
    d = divide(2.0, 1.0 + e)
    # fit_polynomials.py tanh: (tanh(x) - x)/x³ of x², |x| <= 5/8; 8.6e-09 relative to tanh
    near = -0.333332819422 + z * (
        0.133314422036 + z * (-0.0537397155531 + z * (0.0206390887954 - 0.00570498872745 * z))
    )
    t = tl.where(size < 0.625, tl.fma(size * z, near, size), tl.fma(-e, d, 1.0))
    return tl.where(x < 0, -t, t), e * d * d


@triton.jit
def _step(strides, OFFSETS_64: tl.constexpr):
    """From one parameter to the next."""
    if OFFSETS_64:
        return tl.cast(strides[1], tl.int64)
    else:
        return strides[1]


@triton.jit
def _pixels(tensor, strides, sample, pixel):
    return tensor + sample * strides[0] + pixel * strides[2]


@triton.jit
def _level(target, step, channel, mask):
    x = tl.load(target + channel * step, mask=mask, other=0).to(tl.float32)
    if target.dtype.element_ty == tl.uint8:  # x / 255, rounded as a division would
        level = x * (1.0 / 255.0)
        x = tl.fma(tl.fma(level, -255.0, x), 1.0 / 255.0, level)
    return x


@triton.jit
def _levels(target, target_s, mask, CHANNELS: tl.constexpr):
    x0 = _level(target, target_s[1], 0, mask)
    if CHANNELS == 3:
        return x0, _level(target, target_s[1], 1, mask), _level(target, target_s[1], 2, mask)
    else:
        return x0, x0, x0


@triton.jit
def _read(params, step, which, mask):
    return tl.load(params + which * step, mask=mask, other=0).to(tl.float32)


@triton.jit
def _component(params, step, k, K, x, mask, CHANNELS: tl.constexpr, EXACT: tl.constexpr):
    """A component's logit, and per channel its conditional mean and its log-scale."""
    logit = _read(params, step, k, mask)
    m0 = _read(params, step, K + k, mask)
    s0 = _read(params, step, 2 * K + k, mask)
    if CHANNELS == 3:
        x0, x1, _ = x
        t0 = 2.0 * x0 - 1.0
        t1 = 2.0 * x1 - 1.0
        k0, _ = _tanh(_read(params, step, 3 * K + k, mask), EXACT)
        k1, _ = _tanh(_read(params, step, 6 * K + k, mask), EXACT)
        k2, _ = _tanh(_read(params, step, 9 * K + k, mask), EXACT)
        m1 = tl.fma(k0, t0, _read(params, step, 4 * K + k, mask))
        m2 = tl.fma(k2, t1, tl.fma(k1, t0, _read(params, step, 7 * K + k, mask)))
        s1 = _read(params, step, 5 * K + k, mask)
        s2 = _read(params, step, 8 * K + k, mask)
        return logit, (m0, m1, m2), (s0, s1, s2)
    else:
        return logit, (m0, m0, m0), (s0, s0, s0)


@triton.jit
def _log_p(mean, s, x, CHANNELS: tl.constexpr, EXACT: tl.constexpr):
    nll = discretized_logistic_nll((mean[0], s[0]), x[0], EXACT)
    if CHANNELS == 3:
        nll += discretized_logistic_nll((mean[1], s[1]), x[1], EXACT)
        nll += discretized_logistic_nll((mean[2], s[2]), x[2], EXACT)
    return -nll


@triton.jit
def _add(m, s, a, EXACT: tl.constexpr):
    """The running m = max a and s = sum exp(a - m)."""
    far = a - m
    e = exp(-tl.abs(far), EXACT)
    return tl.where(far > 0, a, m), tl.where(far > 0, s * e + 1.0, s + e)


@triton.jit
def _sums(params, step, K, x, mask, CHANNELS: tl.constexpr, EXACT: tl.constexpr, PIXELS: tl.constexpr):
    """The largest logit and the sum of exp(l) of logits l less the largest; maximum and sum of l + log p."""
    largest = tl.full((PIXELS,), float("-inf"), tl.float32)
    for k in range(K):
        largest = tl.maximum(largest, _read(params, step, k, mask))
    s_prior = tl.zeros((PIXELS,), tl.float32)
    m = tl.full((PIXELS,), _LOWEST, tl.float32)
    s = s_prior
    for k in range(K):
        _, mean, scale = _component(params, step, k, K, x, mask, CHANNELS, EXACT)
        log_p = _log_p(mean, scale, x, CHANNELS, EXACT)
        relative = (
            _read(params, step, k, mask) - largest
        )  # read late: no register is kept for it (ptxas spilled)
        s_prior += exp(relative, EXACT)
        m, s = _add(m, s, relative + log_p, EXACT)
    return largest, s_prior, m, s


@triton.jit(do_not_specialize=["parts"])
def _forward(  # an argument named params would hide Triton's own
    packed, target, kept, nll, packed_s, target_s, kept_s, nll_s, n, parts,
    K: tl.constexpr, EACH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr, EXACT: tl.constexpr,
    OFFSETS_64: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    part = pid % parts
    sample = (pid // parts).to(tl.int64)
    total = tl.zeros((PIXELS,), tl.float32)
    for i in range(STEPS):
        pixel = (part.to(tl.int64 if OFFSETS_64 else tl.int32) * STEPS + i) * PIXELS + tl.arange(0, PIXELS)
        mask = pixel < n
        x = _levels(_pixels(target, target_s, sample, pixel), target_s, mask, CHANNELS)
        at = _pixels(packed, packed_s, sample, pixel)
        _, s_prior, m, s = _sums(at, _step(packed_s, OFFSETS_64), K, x, mask, CHANNELS, EXACT, PIXELS)
        value = tl.log(s_prior / s) - m
        counted = mask
        if kept is not None:
            counted = mask & (tl.load(kept + sample * kept_s[0] + pixel * kept_s[1], mask=mask, other=0) != 0)
        value = tl.where(counted, value, 0.0)
        if EACH:
            tl.store(nll + sample * nll_s[0] + pixel * nll_s[1], value, mask=mask)
        else:
            total += value
    if not EACH:
        tl.store(nll + sample * nll_s[0] + part * nll_s[1], tl.sum(total))


@triton.jit
def _write(grad, step, which, value, counted, mask):
    tl.store(grad + which * step, tl.where(counted, value, 0.0).to(grad.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["parts"])
def _backward(
    packed, target, kept, grad_nll, grad_params, packed_s, target_s, kept_s, grad_nll_s, grad_s, n, parts,
    K: tl.constexpr, EACH: tl.constexpr, CHANNELS: tl.constexpr, EXACT: tl.constexpr, OFFSETS_64: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    sample = (pid // parts).to(tl.int64)
    pixel = (pid % parts).to(tl.int64 if OFFSETS_64 else tl.int32) * PIXELS + tl.arange(0, PIXELS)
    mask = pixel < n
    counted = mask
    if kept is not None:
        counted = mask & (tl.load(kept + sample * kept_s[0] + pixel * kept_s[1], mask=mask, other=0) != 0)
    if EACH:
        g = tl.load(grad_nll + sample * grad_nll_s[0] + pixel * grad_nll_s[1], mask=mask, other=0)
    else:
        g = tl.load(grad_nll + sample * grad_nll_s[0])
    x = _levels(_pixels(target, target_s, sample, pixel), target_s, mask, CHANNELS)
    at = _pixels(packed, packed_s, sample, pixel)
    out = _pixels(grad_params, grad_s, sample, pixel)
    step = _step(packed_s, OFFSETS_64)
    grad_step = _step(grad_s, OFFSETS_64)
    largest, s_prior, m, s = _sums(at, step, K, x, mask, CHANNELS, EXACT, PIXELS)
    by_prior = divide(g, s_prior)
    by_s = divide(g, s)
    for k in range(K):
        logit, mean, scale = _component(at, step, k, K, x, mask, CHANNELS, EXACT)
        posterior = by_s * exp((logit - largest) + _log_p(mean, scale, x, CHANNELS, EXACT) - m, EXACT)
        _write(out, grad_step, k, by_prior * exp(logit - largest, EXACT) - posterior, counted, mask)
        for c in tl.static_range(CHANNELS):
            of_mean, of_scale = discretized_logistic_slopes(mean[c], scale[c], x[c], EXACT)
            # Finite, so that a posterior of 0 makes it 0.
            of_scale = tl.maximum(of_scale, _LOWEST, propagate_nan=tl.PropagateNan.ALL)
            of_scale = tl.minimum(of_scale, -_LOWEST, propagate_nan=tl.PropagateNan.ALL)
            of_mean *= posterior
            first = (K + 3 * c * K) + k
            _write(out, grad_step, first, of_mean, counted, mask)
            _write(out, grad_step, first + K, posterior * of_scale, counted, mask)
            # the tanh'ed coefficients: of red in green, of red in blue, of green in blue
            if c == 1:
                _, slope = _tanh(_read(at, step, 3 * K + k, mask), EXACT)
                _write(out, grad_step, 3 * K + k, of_mean * (2.0 * x[0] - 1.0) * slope, counted, mask)
            elif c == 2:
                _, slope = _tanh(_read(at, step, 6 * K + k, mask), EXACT)
                _write(out, grad_step, 6 * K + k, of_mean * (2.0 * x[0] - 1.0) * slope, counted, mask)
                _, slope = _tanh(_read(at, step, 9 * K + k, mask), EXACT)
                _write(out, grad_step, 9 * K + k, of_mean * (2.0 * x[1] - 1.0) * slope, counted, mask)


class _Plan(NamedTuple):
    parts: int  # of a sample
    steps: int  # blocks of a program
    pixels: int  # of a block


def _plan(batch: int, pixels: int, *params: Spec) -> _Plan:
    """As many neighbouring pixels a thread as make a 32-bit access, or one of 64 bits where there are plenty; one where
    neighbours are apart. More would take registers that hide no latency: a pixel is mostly arithmetic."""
    each = 1
    if all(p.strides[2] == 1 for p in params):
        each = (8 if batch * pixels >= 4 * THREADS * layout.MANY else 4) // params[0].dtype.itemsize
    block = THREADS * each
    block = min(block, max(32, triton.next_power_of_2(pixels)))
    blocks = triton.cdiv(pixels, block)
    steps = triton.cdiv(blocks, min(blocks, triton.cdiv(layout.MANY, batch)))
    return _Plan(triton.cdiv(blocks, steps), steps, block)


def _far(*tensors: Spec) -> bool:
    """Whether offsets inside a sample need 64 bits."""
    extents = (sum(n * s for n, s in zip(t.shape[1:], t.strides[1:], strict=True)) for t in tensors)
    return any(e >= 2**31 - 2**16 for e in extents)


@cached
def _forward_job(device: torch.device, *keys: Key) -> Job:
    params, target, kept, nll = specs(*keys)
    assert params is not None and target is not None and nll is not None
    batch, channels, n = target.shape
    plan = _plan(batch, n, params)
    each = len(nll.shape) == 2
    split = plan.parts > 1 and not each
    nll_s = (1, batch) if split else nll.strides if each else (nll.strides[0], 0)
    job = Job(
        _forward, (batch * plan.parts,), min(THREADS, plan.pixels),
        (params.strides, target.strides, kept.strides if kept else (), nll_s, n, plan.parts,
         components(params, target), each, plan.steps, channels, exact(params), _far(params, target), plan.pixels),
    )  # fmt: skip
    job.scratch = [(plan.parts, batch) if split else None]
    return job


@cached
def _backward_job(device: torch.device, *keys: Key) -> Job:
    params, target, kept, grad_nll, grad = specs(*keys)
    assert params is not None and target is not None and grad_nll is not None and grad is not None
    batch, channels, n = target.shape
    plan = _plan(batch, n, params, grad)
    parts = triton.cdiv(n, plan.pixels)
    return Job(
        _backward, (batch * parts,), min(THREADS, plan.pixels),
        (params.strides, target.strides, kept.strides if kept else (), grad_nll.strides, grad.strides, n,
         parts, components(params, target), len(grad_nll.shape) == 2, channels,
         exact(params), _far(params, target, grad), plan.pixels),
    )  # fmt: skip


def components(params: Spec, target: Spec) -> int:
    return params.shape[1] // (3 if target.shape[1] == 1 else 10)


def mixture_forward(
    params: Tensor, target: Tensor, mask: Tensor | None, *, nll: Tensor, grad_params: Tensor | None = None
) -> None:
    """Fills nll, (batch,) or (batch, pixels), from params (batch, parameters, pixels) and target (batch, channels,
    pixels)."""
    if grad_params is not None:  # the op asks for both at once on the CPU: here, in the interpreter
        mixture_backward(params, target, mask, nll.new_ones(1).expand_as(nll), grad_params=grad_params)
    if target.numel() == 0:
        nll.zero_()
        return
    inputs = (params, target, mask)
    job = _forward_job(params.device, *map(key, inputs), key(nll))
    (out,) = outputs(job, (nll,), params)
    run(job, params, *inputs, out)
    add_up(out, nll)


def mixture_backward(
    params: Tensor, target: Tensor, mask: Tensor | None, grad_nll: Tensor, *, grad_params: Tensor
) -> None:
    """Fills grad_params, of params' shape and any strides."""
    if target.numel() == 0:
        return
    tensors = (params, target, mask, grad_nll, grad_params)
    run(_backward_job(params.device, *map(key, tensors)), params, *tensors)
