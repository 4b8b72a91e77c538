"""A negative binomial count that drops out, that is becomes 0, with some probability."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide, exp, expm1, log1p, sigmoid, softplus
from .counts import EPS, LARGEST, NOTHING, is_plain
from .negative_binomial import careful_slopes, plain_slopes, value


@triton.jit
def zero_inflated_negative_binomial_nll(params, x, EXACT: tl.constexpr):
    mean, theta, p = params
    nb = value(mean, theta, x)
    # -log(sigmoid(p) + sigmoid(-p) exp(-nb)): from 1 where that is near, else the difference of two softplus
    q = sigmoid(-p, True) * -expm1(-nb)
    far = (
        tl.minimum(tl.maximum(-p, 0.0), nb) + log1p(exp(-tl.abs(p), True)) - log1p(exp(-tl.abs(p + nb), True))
    )
    zero = tl.where(q < 0.5, log1p(divide(q, 1.0 - q)), far)
    return tl.where(tl.abs(x) < NOTHING, zero, softplus(p, True) + nb)


@triton.jit
def zero_inflated_negative_binomial_grads(params, x, g, EXACT: tl.constexpr):
    mean, theta, p = params
    none = tl.abs(x) < NOTHING
    if is_plain((mean, theta), x):
        by_mean, by_theta = plain_slopes(mean + EPS, theta + EPS, x)
        nb = (theta + EPS) * by_theta + (mean + EPS) * by_mean  # of a count of 0: theta log(1 + mu / theta)
    else:
        by_mean, by_theta, nb = careful_slopes(mean, theta, x)
    q = tl.where(none, sigmoid(-p - nb, True), 1.0)  # the zero is one of the negative binomial's
    by_p = sigmoid(-p, True) * sigmoid(p + nb, True) * expm1(-nb)
    by_theta = q * tl.where(none & (nb > LARGEST), 0.0, by_theta)
    # As the value is NaN where one of them is.
    g += tl.where((by_mean != by_mean) | (p != p), float("nan"), 0.0)
    return g * q * by_mean, g * by_theta, g * tl.where(none, by_p, sigmoid(p, True))
