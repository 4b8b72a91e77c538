"""A Poisson count."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide
from .counts import EPS, LARGEST, NOTHING, excess, growth_of_infinite, in_domain, log_factorial_minus, unit_of


@triton.jit
def poisson_nll(params, x, EXACT: tl.constexpr):
    (mean,) = params
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
