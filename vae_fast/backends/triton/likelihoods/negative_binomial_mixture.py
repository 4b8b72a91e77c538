"""A count of one of two negative binomials, the first with the probability sigmoid(logit).

The components are computed one after the other, in loops that are not unrolled: side by side their gradients take 255
registers a thread and 370 bytes of local memory on sm_80 and sm_90, and the code is twice as long.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide, exp, expm1, log1p, sigmoid, softplus
from .negative_binomial import count_grads, count_nll, count_terms


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
    _, _, _, el, _ = params
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
    for component in tl.range(2, loop_unroll_factor=1):
        mean, th = _of(component, params)
        share = sigmoid(tl.where(component == 0, posterior, -posterior), True)  # P(component | x)
        d_mean_1 = d_mean
        d_theta_1 = d_theta
        by_mean, by_theta = count_grads(count_terms(mean, th, x))
        d_mean = g * tl.where(share == 0, 0.0, share * by_mean)
        d_theta = g * tl.where(share == 0, 0.0, share * by_theta)
    return d_mean_1, d_mean, d_theta_1, g * by_logit, d_theta


@triton.jit
def _values(params, x):
    """What count_nll gives for either component."""
    mean_1, mean_2, theta, el, theta_2 = params
    second = tl.zeros((mean_1 + mean_2 + theta + el + theta_2 + x).shape, tl.float32)
    first = second
    for component in tl.range(2, loop_unroll_factor=1):
        mean, th = _of(component, params)
        first = second
        second = count_nll(count_terms(mean, th, x))
    return first, second


@triton.jit
def _of(component, params):
    mean_1, mean_2, theta, _, theta_2 = params
    is_first = component == 0
    return tl.where(is_first, mean_1, mean_2), tl.where(is_first, theta, theta_2)
