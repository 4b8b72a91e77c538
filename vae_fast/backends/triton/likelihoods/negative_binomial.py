"""A negative binomial count, of a mean and an inverse dispersion."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide
from .counts import (
    EPS,
    LARGEST,
    NOTHING,
    digamma_rest,
    excess,
    growth_of_infinite,
    in_domain,
    log_factorial_minus,
    stirling,
    unit_of,
)


@triton.jit
def negative_binomial_nll(params, x, EXACT: tl.constexpr):
    mean, theta = params
    return count_nll(count_terms(mean, theta, x))


@triton.jit
def negative_binomial_grads(params, x, g, EXACT: tl.constexpr):
    mean, theta = params
    by_mean, by_theta = count_grads(count_terms(mean, theta, x))
    return g * by_mean, g * by_theta


@triton.jit
def count_terms(mean, theta, x):
    """What value and gradients share, in units of `unit`: mu, theta, x (0 where it counts nothing), X = theta + x,
    Y = theta + mu, 1 / Y, w, theta w and the excess of X / Y for their w; whether theta is infinite, what an infinite
    mu or x adds to the value, whether mu is infinite, and what an infinite x takes from its derivative."""
    x = tl.where(tl.abs(x) < NOTHING, 0.0, x)
    mu = mean + EPS
    th = theta + EPS
    poisson = th > LARGEST
    infinite = growth_of_infinite(mu, x)
    endless = tl.where(x > LARGEST, infinite, 0.0)
    no_limit = mu > LARGEST
    unit, scale = unit_of(mu + th + x)
    mu = in_domain(mu) * scale
    th = in_domain(th) * scale
    x = in_domain(x) * scale
    d = x - mu
    X = th + x
    Y = th + mu
    inverse = divide(1.0, Y)
    by_sum = divide(1.0, 2.0 * th + (x + mu))
    w = d * by_sum
    thw = tl.where(poisson, 0.5 * d, (th * d) * by_sum)
    e = tl.where(poisson, 0.0, excess(X, Y, X * inverse, w))
    return mu, th, x, X, Y, inverse, w, thw, e, unit, poisson, infinite, no_limit, endless


@triton.jit
def count_nll(terms):
    """x log(x / mu) - X log(X / Y), whose first-order terms cancel, and what Stirling leaves of the lgammas.

    With a theta above |x - mu| the excesses of the two logs are small and differ. With a smaller one they may be large
    and nearly the same, and the form is x log(x Y / (mu X)) - theta log(X / Y), of terms that are small with theta.
    """
    mu, th, x, X, Y, _, _, thw, e, unit, poisson, infinite, _, _ = terms
    none = x == 0
    c = tl.where(none, 1.0, x)  # nothing depends on it there
    d = c - mu
    by_both = divide(1.0, c + mu)
    large = th >= tl.abs(d)
    thd = th * d
    v = tl.where(large, d * by_both, divide(thd, 2.0 * (mu * X) + thd))
    a = tl.where(large, c, c * Y)
    b = tl.where(large, mu, mu * X)
    linear = tl.where(large, 0.0, 2.0 * v - 4.0 * thw * by_both)
    deviance = 2.0 * thw * (d * by_both) + c * (excess(a, b, divide(a, b), v) + linear)
    deviance -= tl.where(large, X, th) * e
    growth = divide(x, 2.0 * th + x)
    growth += 0.5 * excess(X, th, divide(X, th), growth)  # log(X / theta) / 2
    rest = stirling(th * unit) - stirling(X * unit) + tl.where(poisson, 0.0, growth)
    count = unit * deviance + (log_factorial_minus(c * unit) + rest)
    return tl.where(none, unit * (-2.0 * thw - th * e), count) + infinite


@triton.jit
def count_grads(terms):
    mu, th, x, X, _, inverse, w, _, e, unit, poisson, infinite, no_limit, endless = terms
    d = x - mu
    by_th = divide(1.0, th)
    by_X = divide(1.0, X)
    scale = divide(1.0, unit)
    by_theta = w * (d * inverse) - e  # u - log(1 + u), u = (x - mu) / Y
    rest = digamma_rest(X * unit, by_X * scale) - digamma_rest(th * unit, by_th * scale)
    by_theta -= 0.5 * (x * by_X) * (by_th * scale) + rest
    by_mean = -divide(tl.where(poisson, d, (d * th) * inverse), mu)
    by_mean = tl.where(no_limit, tl.where(poisson, 1.0, 0.0) + (th + x) * 0.0, by_mean) - endless
    return by_mean, tl.where(poisson, mu * 0.0 + x * 0.0, by_theta + infinite)
