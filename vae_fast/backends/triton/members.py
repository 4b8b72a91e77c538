"""Members of the op `likelihood` for images and other real numbers: -log p(x) of an element, and its derivatives.

Every function takes three parameters, of which a member reads as many as it has; a gradient that does not exist is
0.0. Those for counts are in `counts`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import divide, exp, log, log1p, sigmoid, softplus


@triton.jit
def bernoulli_nll(el, _q, _r, x, EXACT: tl.constexpr):
    return tl.maximum(el, 0.0, propagate_nan=tl.PropagateNan.ALL) - x * el + log1p(exp(-tl.abs(el), EXACT))


@triton.jit
def bernoulli_grads(el, _q, _r, x, g, EXACT: tl.constexpr):
    # sigmoid(l) - x, from the side on which it does not cancel
    t = exp(-tl.abs(el), EXACT)
    s = divide(t, 1.0 + t)
    return g * tl.where(el > 0, (1.0 - x) - s, s - x), 0.0, 0.0


@triton.jit
def continuous_bernoulli_nll(el, _q, _r, x, EXACT: tl.constexpr):
    # (1/2 - x) l + log(sinh(l/2) / (l/2)) around 0, where the other form has 0/0
    a = tl.abs(el)
    z = a * a
    near = 5.509676906453797e-06 + z * (-1.0205832892829578e-07 + z * 1.7036505843653048e-09)
    near = z * (0.04166666659703691 + z * (-0.0003472213421987667 + z * near))
    far = log(divide(1.0 - exp(-a, EXACT), a)) + tl.maximum(el, 0.0)
    return tl.where(a < 2.0, (0.5 - x) * el + near, far - x * el)


@triton.jit
def continuous_bernoulli_grads(el, _q, _r, x, g, EXACT: tl.constexpr):
    # m(l) - x with m(l) = 1 / (1 - exp(-l)) - 1/l, of which m(-l) = 1 - m(l)
    a = tl.abs(el)
    z = a * a
    near = 3.3047956370837176e-05 + z * (-8.117536252189866e-07 + z * 1.6363503904149885e-08)
    near = el * (0.08333333251900155 + z * (-0.0013888786265909986 + z * near))
    t = exp(-a, EXACT)
    less = divide(1.0, a) - divide(t, 1.0 - t)
    far = tl.where(el > 0, (1.0 - x) - less, less - x)
    return g * tl.where(a < 2.0, (0.5 - x) + near, far), 0.0, 0.0


@triton.jit
def gaussian_nll(mean, lv, _r, x, EXACT: tl.constexpr):
    far = x - mean
    return 0.5 * (1.8378770664093453 + lv + far * far * exp(-lv, EXACT))  # log 2 pi


@triton.jit
def gaussian_grads(mean, lv, _r, x, g, EXACT: tl.constexpr):
    far = x - mean
    slope = far * exp(-lv, EXACT)
    return -g * slope, 0.5 * g * (1.0 - far * slope), 0.0


@triton.jit
def laplace_nll(location, s, _r, x, EXACT: tl.constexpr):
    return 0.6931471805599453 + s + tl.abs(x - location) * exp(-s, EXACT)


@triton.jit
def laplace_grads(location, s, _r, x, g, EXACT: tl.constexpr):
    far = x - location
    inv = exp(-s, EXACT)
    sign = tl.where(far > 0, 1.0, tl.where(far < 0, -1.0, far))  # 0 at 0, NaN of NaN
    return -g * sign * inv, g * (1.0 - tl.abs(far) * inv), 0.0


@triton.jit
def edges(mean, s, x, EXACT: tl.constexpr):
    """Of a logistic and the level of x in [0, 1] among 256: 2 x - 1, the clamped log-scale and its exp(-s), and the
    edges of the level in units of the scale, upper first."""
    t = 2.0 * x - 1.0
    s = tl.where(s < -7.0, -7.0, s)
    inv = exp(-s, EXACT)
    c = t - mean
    return t, s, inv, inv * (c + 1 / 255), inv * (c - 1 / 255)


@triton.jit
def discretized_logistic_nll(mean, s, _r, x, EXACT: tl.constexpr):
    # The mass between the edges a < b is sigmoid(b) sigmoid(-a) (1 - exp(a - b)), of which nothing cancels.
    t, s, inv, b, a = edges(mean, s, x, EXACT)
    low = softplus(-b, EXACT)
    high = softplus(a, EXACT)
    d = (2 / 255) * inv
    # -log(1 - exp(-d)): for a narrow level -log d + d/2 - log(sinh(d/2) / (d/2)), where log d is known without a log
    z = d * d
    narrow = z * (0.04166666659703691 + z * (-0.0003472213421987667 + z * 5.509676906453797e-06))
    narrow = ((s + 4.84375) + 0.00436636459848) + (0.5 * d - narrow)  # log(255 / 2)
    e = exp(-d, EXACT)
    width = tl.where(d < 1.0, narrow, log1p(tl.minimum(divide(e, 1.0 - e), 1.0)))
    return tl.where(t < -0.999, low, tl.where(t > 0.999, high, low + high + width))


@triton.jit
def discretized_logistic_slopes(mean, s, x, EXACT: tl.constexpr):
    """Derivatives by mean and log-scale; the latter is 1 at the bound of the clamp and 0 below it."""
    t, _, inv, b, a = edges(mean, s, x, EXACT)
    of_b = tl.where(t > 0.999, 0.0, sigmoid(-b, EXACT))
    of_a = tl.where(t < -0.999, 0.0, sigmoid(a, EXACT))
    d = (2 / 255) * inv
    z = d * d
    # d / expm1(d) = d / (exp(d) - 1) = d/2 coth(d/2) - d/2
    near = (
        1.0 - 0.5 * d + z * (0.08333333251900155 + z * (-0.0013888786265909986 + z * 3.3047956370837176e-05))
    )
    e = exp(-d, EXACT)
    of_width = tl.where(d < 1.0, near, d * divide(e, 1.0 - e))
    of_width = tl.where(tl.abs(t) > 0.999, 0.0, of_width)
    by_s = tl.where(s < -7.0, 0.0, b * of_b - a * of_a + of_width)
    return inv * (of_b - of_a), by_s


@triton.jit
def discretized_logistic_grads(mean, s, _r, x, g, EXACT: tl.constexpr):
    by_mean, by_s = discretized_logistic_slopes(mean, s, x, EXACT)
    return g * by_mean, g * by_s, 0.0
