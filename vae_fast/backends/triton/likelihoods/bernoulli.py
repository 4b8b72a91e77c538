"""A Bernoulli variable, from its logit or its probability."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide, exp, log, log1p


@triton.jit
def bernoulli_nll(params, x, EXACT: tl.constexpr):
    (el,) = params
    return linear(el, x) + log1p(exp(-tl.abs(el), EXACT))


@triton.jit
def bernoulli_grads(params, x, g, EXACT: tl.constexpr):
    (el,) = params
    # sigmoid(l) - x, from the side on which it does not cancel
    t = exp(-tl.abs(el), EXACT)
    s = divide(t, 1.0 + t)
    return (g * tl.where(el > 0, (1.0 - x) - s, s - x),)


@triton.jit
def linear(el, x):
    """max(l, 0) - x l, which does not cancel."""
    return tl.abs(el) * tl.where(el < 0, x, 1.0 - x)


@triton.jit
def bernoulli_probs_nll(params, x, EXACT: tl.constexpr):
    (p,) = params
    # log of the larger of p and 1 - p is -log(1 + smaller / larger)
    q = 1.0 - p
    high = p > 0.5
    smaller = _log(tl.where(high, q, p))
    larger = -log1p(divide(tl.where(high, q, p), tl.where(high, p, q)))
    nll = -(x * tl.where(high, larger, smaller) + (1.0 - x) * tl.where(high, smaller, larger))
    return tl.where(_are_probabilities(p, x), nll, float("nan"))


@triton.jit
def bernoulli_probs_grads(params, x, g, EXACT: tl.constexpr):
    (p,) = params
    slope = divide(p - x, tl.maximum(p * (1.0 - p), 1e-12))
    return (g * tl.where(_are_probabilities(p, x), slope, float("nan")),)


@triton.jit
def _are_probabilities(p, x):
    return (p >= 0.0) & (p <= 1.0) & (x >= 0.0) & (x <= 1.0)


@triton.jit
def _log(x):
    """log(x) held at -100 or above, of 0 <= x <= 1/2, subnormal numbers included."""
    small = x < 1e-30  # there 2^64 times as large, and less 64 log 2
    value = log(tl.where(small, x * 1.8446744073709552e19, x)) - tl.where(small, 44.3614195558365, 0.0)
    return tl.maximum(value, -100.0)
