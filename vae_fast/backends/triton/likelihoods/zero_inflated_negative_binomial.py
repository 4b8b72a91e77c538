"""A negative binomial count that drops out, that is becomes 0, with some probability."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide, exp, expm1, log1p, sigmoid, softplus
from .counts import LARGEST, NOTHING
from .negative_binomial import count_grads, count_nll, count_terms


@triton.jit
def zero_inflated_negative_binomial_nll(params, x, EXACT: tl.constexpr):
    mean, theta, p = params
    nb = count_nll(count_terms(mean, theta, x))
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
    terms = count_terms(mean, theta, x)
    by_mean, by_theta = count_grads(terms)
    nb = terms[9] * (-2.0 * terms[7] - terms[1] * terms[8]) + terms[11]  # of a count of 0
    q = tl.where(none, sigmoid(-p - nb, True), 1.0)  # the zero is one of the negative binomial's
    by_p = sigmoid(-p, True) * sigmoid(p + nb, True) * expm1(-nb)
    by_theta = q * tl.where(none & (nb > LARGEST), 0.0, by_theta)
    # As the value is NaN where one of them is.
    g += tl.where((by_mean != by_mean) | (p != p), float("nan"), 0.0)
    return g * q * by_mean, g * by_theta, g * tl.where(none, by_p, sigmoid(p, True))
