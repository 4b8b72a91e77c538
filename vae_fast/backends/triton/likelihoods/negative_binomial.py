"""A negative binomial count, of a mean and an inverse dispersion."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide, log2, reciprocal
from . import counts
from .counts import (
    EPS,
    LARGEST,
    NOTHING,
    digamma_rest,
    digamma_rest_from_1,
    excess,
    growth_of_infinite,
    in_domain,
    is_plain,
    log1p_minus,
    log_factorial_minus,
    pick,
    put,
    quarters,
    stirling,
    stirling_from_1,
    unit_of,
    whole,
)


@triton.jit
def negative_binomial_nll(params, x, EXACT: tl.constexpr):
    mean, theta = params
    return value(mean, theta, x)


@triton.jit
def negative_binomial_grads(params, x, g, EXACT: tl.constexpr):
    mean, theta = params
    by_mean, by_theta = slopes(mean, theta, x)
    return g * by_mean, g * by_theta


@triton.jit
def value(mean, theta, x):
    """-log p(x)"""
    if is_plain((mean, theta), x):
        result = plain_value(mean + EPS, theta + EPS, x)
    else:
        result = careful_value(mean, theta, x)
    return result


@triton.jit
def careful_value(mean, theta, x):
    if counts.QUARTERS:
        none = tl.zeros((mean + theta + x).shape, tl.float32)
        means, thetas, xs = quarters(mean + none), quarters(theta + none), quarters(x + none)
        values = quarters(none)
        for i in tl.range(4, loop_unroll_factor=1):
            values = put(i, values, count_nll(count_terms(pick(i, means), pick(i, thetas), pick(i, xs))))
        return whole(values)
    else:
        return count_nll(count_terms(mean, theta, x))


@triton.jit
def slopes(mean, theta, x):
    """Its derivatives by mean and theta."""
    if is_plain((mean, theta), x):
        by_mean, by_theta = plain_slopes(mean + EPS, theta + EPS, x)
    else:
        by_mean, by_theta, _ = careful_slopes(mean, theta, x)
    return by_mean, by_theta


@triton.jit
def careful_slopes(mean, theta, x):
    """The derivatives, and the value of a count of 0."""
    if counts.QUARTERS:
        none = tl.zeros((mean + theta + x).shape, tl.float32)
        means, thetas, xs = quarters(mean + none), quarters(theta + none), quarters(x + none)
        by_mean, by_theta, of_zero = quarters(none), quarters(none), quarters(none)
        for i in tl.range(4, loop_unroll_factor=1):
            terms = count_terms(pick(i, means), pick(i, thetas), pick(i, xs))
            a, b = count_grads(terms)
            by_mean = put(i, by_mean, a)
            by_theta = put(i, by_theta, b)
            of_zero = put(i, of_zero, _value_of_zero(terms))
        return whole(by_mean), whole(by_theta), whole(of_zero)
    else:
        terms = count_terms(mean, theta, x)
        by_mean, by_theta = count_grads(terms)
        return by_mean, by_theta, _value_of_zero(terms)


@triton.jit
def _value_of_zero(terms):
    _, th, _, _, _, _, _, thw, e, unit, _, infinite, _, _ = terms
    return unit * (-2.0 * thw - th * e) + infinite


@triton.jit
def plain_value(mu, th, x):
    """With X = theta + x, Y = theta + mu, d = x - mu, 1 + u = x Y / (mu X) and 1 + v = X / Y:
    x log(1 + u) - theta log(1 + v), whose first-order terms x u - theta v are theta u v, and what Stirling leaves of
    the lgammas. A theta below 1 is taken as theta Gamma(theta) = Gamma(theta + 1).
    """
    none = x < 0.5
    x = tl.where(none, 0.0, x)
    X = th + x
    Y = th + mu
    d = x - mu
    thd = th * d
    muX = mu * X
    by_muX = reciprocal(muX)
    by_Y = reciprocal(Y)
    u = thd * by_muX
    v = d * by_Y
    of_x, near_u = log1p_minus(u, thd * reciprocal(2.0 * muX + thd), x * Y * by_muX)
    of_th, near_v = log1p_minus(v, d * reciprocal(2.0 * Y + d), X * by_Y)
    first_u = tl.where(near_u, u, 0.0)
    th_v = tl.where(near_v, th * v, 0.0)
    of_zero = -th * of_th - th_v
    linear = tl.where(near_u & near_v, first_u * th_v, x * first_u - th_v)
    small = th < 1.0
    th_1 = th + 1.0
    by_th = reciprocal(tl.where(small, th_1, th))
    by_X = reciprocal(X)
    by_x = reciprocal(x)
    rest = stirling_from_1(by_th) + (stirling_from_1(by_x) - stirling_from_1(by_X))
    rest += 0.9189385332046727 + 0.34657359027997264 * log2(x * X * by_th)  # log(2 pi) / 2, log(2) / 2
    rest += tl.where(small, th_1 * (0.6931471805599453 * (log2(th_1) - log2(th))) - 1.0, 0.0)
    return tl.where(none, of_zero, x * of_x - th * of_th + linear + rest)


@triton.jit
def plain_slopes(mu, th, x):
    """By theta: with e = x - mu, or a theta below 1 and counts e = x - 1 - mu - mu / theta, as Gamma(theta) is
    Gamma(theta + 1) / theta: e / Y + log(1 - e / X), whose first-order terms are e d / (X Y), and what Stirling leaves
    of the digammas. No 1 / theta is left to cancel.
    """
    none = x < 0.5
    x = tl.where(none, 0.0, x)
    X = th + x
    Y = th + mu
    d = x - mu
    by_muY = reciprocal(mu * Y)
    by_Y = mu * by_muY
    by_X = reciprocal(X)
    by_th = reciprocal(th)
    th_1 = th + 1.0
    shifted = (th < 1.0) & (x >= 0.5)
    less = tl.where(shifted, 1.0, 0.0)
    e = tl.where(shifted, (th * (x - 1.0) - mu * th_1) * by_th, d)
    ratio = Y * by_X
    ratio = tl.where(shifted, ratio * (th_1 * by_th), ratio)
    v = -e * by_X
    log_v, near = log1p_minus(v, -e * reciprocal(2.0 * X - e), ratio)
    first = e * by_Y
    by_theta = log_v + tl.where(near, first * (d * by_X), first)
    by_th_1 = tl.where(shifted, reciprocal(th_1), by_th)
    rest = digamma_rest_from_1(by_th_1) - digamma_rest_from_1(by_X) - 0.5 * (x - less) * (by_X * by_th_1)
    return -d * (th * by_muY), by_theta + tl.where(none, 0.0, rest)


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
