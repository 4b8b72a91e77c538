"""A Poisson count."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide, log2, reciprocal
from . import counts
from .counts import (
    EPS,
    LARGEST,
    NOTHING,
    excess,
    growth_of_infinite,
    in_domain,
    is_plain,
    log1p_minus,
    log_factorial_minus,
    pick,
    put,
    quarters,
    stirling_from_1,
    unit_of,
    whole,
)


@triton.jit
def poisson_nll(params, x, EXACT: tl.constexpr):
    (mean,) = params
    if is_plain(params, x):
        result = _plain_value(mean + EPS, x)
    else:
        result = _careful_value(mean, x)
    return result


@triton.jit
def _careful_value(mean, x):
    if counts.QUARTERS:
        none = tl.zeros((mean + x).shape, tl.float32)
        means, xs, values = quarters(mean + none), quarters(x + none), quarters(none)
        for i in tl.range(4, loop_unroll_factor=1):
            values = put(i, values, _value(pick(i, means), pick(i, xs)))
        return whole(values)
    else:
        return _value(mean, x)


@triton.jit
def _plain_value(mu, x):
    """x log(1 + u) - d with d = x - mu, u = d / mu."""
    d = x - mu
    by_mu = reciprocal(mu)
    by_x = reciprocal(x)
    u = d * by_mu
    of_x, near = log1p_minus(u, d * reciprocal(x + mu), x * by_mu)
    first = tl.where(near, d * u, -d)
    rest = stirling_from_1(by_x) + (
        0.9189385332046727 + 0.34657359027997264 * log2(x)
    )  # log(2 pi) / 2, log(2) / 2
    return tl.where(x < 0.5, mu, x * of_x + first + rest)


@triton.jit
def _value(mean, x):
    # x log(x / mu) - (x - mu), and log x! without Stirling's large terms
    none = tl.abs(x) < NOTHING
    x = tl.where(none, 1.0, x)
    mu = mean + EPS
    unit, scale = unit_of(x + mu)
    m = in_domain(mu) * scale
    c = in_domain(x) * scale
    d = c - m
    w = divide(d, c + m)
    nll = unit * (c * excess(c, m, divide(c, m), w) + d * w) + log_factorial_minus(c * unit)
    nll += growth_of_infinite(mu, x)
    return tl.where(none, tl.where(mu >= 0, mu, float("nan")), nll)


@triton.jit
def poisson_grads(params, x, g, EXACT: tl.constexpr):
    (mean,) = params
    none = tl.abs(x) < NOTHING
    mu = in_domain(mean + EPS)
    x = tl.where(none | (x >= 0), x, float("nan"))
    _, scale = unit_of(mu)  # a divisor of the middle of the range
    slope = divide(scale * mu - scale * x, scale * mu)
    slope = tl.where(mean > LARGEST, 1.0 + (x - x), slope)
    return (g * tl.where(none, tl.where(mu >= 0, 1.0, float("nan")), slope),)
