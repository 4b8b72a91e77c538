"""A count of one of two negative binomials, the first with the probability sigmoid(logit).

The gradients of the components are computed one after the other, in a loop that is not unrolled: side by side they take
217 registers a thread on sm_80 instead of 111, with four elements a thread.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide, exp, expm1, log1p, sigmoid, softplus
from .counts import EPS, is_plain
from .negative_binomial import careful_value, plain_value, slopes


@triton.jit
def negative_binomial_mixture_nll(params, x, EXACT: tl.constexpr):
    _, _, _, el, _ = params
    first, second = _values(params, x)
    # Near 1 from its distance to 1, else the logarithm of a sum whose larger term is taken out.
    distance = -sigmoid(el, True) * expm1(-first) - sigmoid(-el, True) * expm1(-second)
    a = first + softplus(-el, True)
    b = second + softplus(el, True)
    larger = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    apart = tl.where(larger == float("inf"), 0.0, tl.abs(a - b))
    far = larger - log1p(exp(-apart, True))
    return tl.where(distance < 0.5, log1p(divide(distance, 1.0 - distance)), far)


@triton.jit
def negative_binomial_mixture_grads(params, x, g, EXACT: tl.constexpr):
    mean_1, mean_2, theta, el, theta_2 = params
    first, second = _values(params, x)
    apart = tl.where(first == second, 0.0, second - first)  # two infinite ones are alike
    posterior = el + apart  # the logit of P(first | x); NaN where the value is
    # sigmoid(l) - P(first | x), from the factor that does not cancel
    up = sigmoid(posterior, True) * sigmoid(-el, True)
    down = sigmoid(el, True) * sigmoid(-posterior, True)
    by_logit = tl.where(apart > 0, up, -down) * expm1(-tl.abs(apart))
    d_mean = tl.zeros(apart.shape, tl.float32)
    d_theta = d_mean
    d_mean_1 = d_mean
    d_theta_1 = d_mean
    # Selected, not shifted along: Triton 3.6 keeps no variable that the loop sets to one of the same initial value.
    for component in tl.range(2, loop_unroll_factor=1):
        is_first = component == 0
        share = sigmoid(tl.where(is_first, posterior, -posterior), True)  # P(component | x)
        by_mean, by_theta = slopes(tl.where(is_first, mean_1, mean_2), tl.where(is_first, theta, theta_2), x)
        d_mean = g * tl.where(share == 0, 0.0, share * by_mean)
        d_theta = g * tl.where(share == 0, 0.0, share * by_theta)
        d_mean_1 = tl.where(is_first, d_mean, d_mean_1)
        d_theta_1 = tl.where(is_first, d_theta, d_theta_1)
    return d_mean_1, d_mean, d_theta_1, g * by_logit, d_theta


@triton.jit
def _values(params, x):
    """-log p(x) of either component."""
    mean_1, mean_2, theta, _, theta_2 = params
    if is_plain((mean_1, mean_2, theta, theta_2), x):
        first = plain_value(mean_1 + EPS, theta + EPS, x)
        second = plain_value(mean_2 + EPS, theta_2 + EPS, x)
    else:
        first = careful_value(mean_1, theta, x)
        second = careful_value(mean_2, theta_2, x)
    return first, second
