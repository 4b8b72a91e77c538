"""A logistic variable in 256 levels."""

from __future__ import annotations

import triton
import triton.language as tl

from ....likelihoods import discretized_logistic as spec
from ..formulas import divide, exp, factors, log1p, sigmoid, softplus

_LEAST_LOG_SCALE = tl.constexpr(spec.LEAST_LOG_SCALE)


@triton.jit
def discretized_logistic_nll(params, x, EXACT: tl.constexpr):
    mean, s = params
    # The mass between the edges a < b is sigmoid(b) sigmoid(-a) (1 - exp(a - b)): no factor cancels.
    t, s, inv, b, a = edges(mean, s, x, EXACT)
    low = softplus(-b, EXACT)
    high = softplus(a, EXACT)
    d = (2 / 255) * inv
    # -log(1 - exp(-d)): for a narrow level -log d + d/2 - log(sinh(d/2) / (d/2)), where log d is known without a log
    z = d * d
    # fit_polynomials.py log_sinh_2: log(sinh(d/2)/(d/2))/d² of d², |d| <= 1; 3.8e-09 absolute
    narrow = z * (0.0416666641831398 + z * (-0.00034716600202955306 + z * 5.360150225897087e-06))
    narrow = ((s + 4.84375) + 0.00436636459848) + (0.5 * d - narrow)  # log(255 / 2)
    e = exp(-d, EXACT)
    width = tl.where(d < 1.0, narrow, log1p(tl.minimum(divide(e, 1.0 - e), 1.0)))
    return low + high + tl.where(tl.abs(t) > 0.999, 0.0, width)


@triton.jit
def discretized_logistic_grads(params, x, g, EXACT: tl.constexpr):
    mean, s = params
    by_mean, by_s = discretized_logistic_slopes(mean, s, x, EXACT)
    return g * by_mean, g * by_s


@triton.jit
def discretized_logistic_slopes(mean, s, x, EXACT: tl.constexpr):
    """Derivatives by mean and log-scale; the latter is 1 at the bound of the clamp and 0 below it."""
    t, _, inv, b, a = edges(mean, s, x, EXACT)
    of_b = sigmoid(-b, EXACT)
    of_a = sigmoid(a, EXACT)
    d = (2 / 255) * inv
    z = d * d
    # d / expm1(d) = d / (exp(d) - 1) = d/2 coth(d/2) - d/2
    # fit_polynomials.py coth_2: (coth(d/2)/2 - 1/d)/d of d², |d| <= 1; 2.8e-08 absolute
    near = z * (0.08333330601453781 + z * (-0.001388442819006741 + z * 3.186549656675197e-05))
    near = 1.0 - 0.5 * d + near
    e = exp(-d, EXACT)
    of_width = tl.where(d < 1.0, near, d * divide(e, 1.0 - e))
    of_width = tl.where(tl.abs(t) > 0.999, 0.0, of_width)
    # An edge that overflowed on the side where its sigmoid is 0: their product is 0, though not of an infinite mean.
    b = tl.minimum(b, 1e30)
    a = tl.maximum(a, -1e30)
    wild = 0.0 * mean + 0.0 * s  # 0 or NaN
    by_s = tl.where(s < _LEAST_LOG_SCALE, 0.0, b * of_b - a * of_a + of_width + wild)
    return inv * (of_b - of_a), by_s


@triton.jit
def edges(mean, s, x, EXACT: tl.constexpr):
    """Of a logistic and the level of x in [0, 1] among 256: 2 x - 1, the clamped log-scale and its exp(-s), and the
    edges of the level in units of the scale, upper first, +-1e30 where there is none."""
    t = 2.0 * x - 1.0
    s = tl.where(s < _LEAST_LOG_SCALE, _LEAST_LOG_SCALE, s)
    m, root = factors(-s, 2)  # exp(-s) = m root^2, one after the other, as c may be large
    m *= root
    c = t - mean
    b = tl.where(t > 0.999, 1e30, (c + 1 / 255) * root * m)
    a = tl.where(t < -0.999, -1e30, (c - 1 / 255) * root * m)
    return t, s, root * m, b, a
