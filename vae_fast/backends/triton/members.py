"""Likelihoods of the op `likelihood` for images and other real numbers: -log p(x) of an element, and its derivatives.

Every function takes three parameters, of which a likelihood reads as many as it has; a gradient that does not exist is
0.0. Those for counts are in `counts`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import divide, exp, factors, log, log1p, scaled_square, sigmoid, softplus, times_exp


@triton.jit
def _linear(el, x):
    """max(l, 0) - x l, which does not cancel."""
    return tl.abs(el) * tl.where(el < 0, x, 1.0 - x)


@triton.jit
def bernoulli_nll(el, _q, _r, x, EXACT: tl.constexpr):
    return _linear(el, x) + log1p(exp(-tl.abs(el), EXACT))


@triton.jit
def bernoulli_grads(el, _q, _r, x, g, EXACT: tl.constexpr):
    # sigmoid(l) - x, from the side on which it does not cancel
    t = exp(-tl.abs(el), EXACT)
    s = divide(t, 1.0 + t)
    return g * tl.where(el > 0, (1.0 - x) - s, s - x), 0.0, 0.0


@triton.jit
def _log(x):
    """log(x) held at -100 or above, of 0 <= x <= 1/2, subnormal numbers included."""
    small = x < 1e-30  # there 2^64 times as large, and less 64 log 2
    value = log(tl.where(small, x * 1.8446744073709552e19, x)) - tl.where(small, 44.3614195558365, 0.0)
    return tl.maximum(value, -100.0)


@triton.jit
def bernoulli_probs_nll(p, _q, _r, x, EXACT: tl.constexpr):
    # log of the larger of p and 1 - p is -log(1 + smaller / larger)
    q = 1.0 - p
    high = p > 0.5
    smaller = _log(tl.where(high, q, p))
    larger = -log1p(divide(tl.where(high, q, p), tl.where(high, p, q)))
    nll = -(x * tl.where(high, larger, smaller) + (1.0 - x) * tl.where(high, smaller, larger))
    return tl.where(_are_probabilities(p, x), nll, float("nan"))


@triton.jit
def bernoulli_probs_grads(p, _q, _r, x, g, EXACT: tl.constexpr):
    slope = divide(p - x, tl.maximum(p * (1.0 - p), 1e-12))
    return g * tl.where(_are_probabilities(p, x), slope, float("nan")), 0.0, 0.0


@triton.jit
def _are_probabilities(p, x):
    return (p >= 0.0) & (p <= 1.0) & (x >= 0.0) & (x <= 1.0)


@triton.jit
def continuous_bernoulli_nll(el, _q, _r, x, EXACT: tl.constexpr):
    # (1/2 - x) l + log(sinh(l/2) / (l/2)) around 0, where the other form has 0/0
    a = tl.abs(el)
    z = a * a
    # fit_polynomials.py log_sinh_4: log(sinh(l/2)/(l/2))/l² of l², |l| <= 2; 3.6e-08 relative
    near = 5.509677066584118e-06 + z * (-1.0205832978726903e-07 + z * 1.703650998052808e-09)
    near = z * (0.0416666679084301 + z * (-0.0003472213284112513 + z * near))
    far = _linear(el, x) - log(divide(a, 1.0 - exp(-a, EXACT)))
    return tl.where(a < 2.0, (0.5 - x) * el + near, far)


@triton.jit
def continuous_bernoulli_grads(el, _q, _r, x, g, EXACT: tl.constexpr):
    # m(l) - x with m(l) = 1 / (1 - exp(-l)) - 1/l, of which m(-l) = 1 - m(l)
    a = tl.abs(el)
    z = a * a
    # fit_polynomials.py coth: (coth(l/2)/2 - 1/l)/l of l², |l| <= 2; 4.2e-09 absolute
    near = 3.304820347693749e-05 + z * (-8.118528853628959e-07 + z * 1.637590330005878e-08)
    near = el * (0.0833333358168602 + z * (-0.001388878794386983 + z * near))
    t = exp(-a, EXACT)
    less = divide(1.0, tl.minimum(a, 8.507059173023462e37)) - divide(t, 1.0 - t)  # 2^126
    far = tl.where(el > 0, (1.0 - x) - less, less - x)
    return g * tl.where(a < 2.0, (0.5 - x) + near, far), 0.0, 0.0


@triton.jit
def gaussian_nll(mean, lv, _r, x, EXACT: tl.constexpr):
    square, _ = scaled_square(mean - x, lv)
    return 0.5 * lv + 0.9189385332046727 + square  # log(2 pi) / 2


@triton.jit
def gaussian_grads(mean, lv, _r, x, g, EXACT: tl.constexpr):
    square, slope = scaled_square(mean - x, lv)
    return g * slope, g * (0.5 - square), 0.0


@triton.jit
def laplace_nll(location, s, _r, x, EXACT: tl.constexpr):
    return 0.6931471805599453 + s + times_exp(tl.abs(x - location), -s)


@triton.jit
def laplace_grads(location, s, _r, x, g, EXACT: tl.constexpr):
    far = x - location
    sign = tl.where(far > 0, 1.0, tl.where(far < 0, -1.0, far))  # 0 at 0, NaN of NaN
    return -g * times_exp(sign, -s), g * (1.0 - times_exp(tl.abs(far), -s)), 0.0


@triton.jit
def edges(mean, s, x, EXACT: tl.constexpr):
    """Of a logistic and the level of x in [0, 1] among 256: 2 x - 1, the clamped log-scale and its exp(-s), and the
    edges of the level in units of the scale, upper first, +-1e30 where there is none."""
    t = 2.0 * x - 1.0
    s = tl.where(s < -7.0, -7.0, s)
    m, root = factors(-s, 2)  # exp(-s) = m root^2, one after the other, as c may be large
    m *= root
    c = t - mean
    b = tl.where(t > 0.999, 1e30, (c + 1 / 255) * root * m)
    a = tl.where(t < -0.999, -1e30, (c - 1 / 255) * root * m)
    return t, s, root * m, b, a


@triton.jit
def discretized_logistic_nll(mean, s, _r, x, EXACT: tl.constexpr):
    # The mass between the edges a < b is sigmoid(b) sigmoid(-a) (1 - exp(a - b)), of which nothing cancels.
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
    by_s = tl.where(s < -7.0, 0.0, b * of_b - a * of_a + of_width + wild)
    return inv * (of_b - of_a), by_s


@triton.jit
def discretized_logistic_grads(mean, s, _r, x, g, EXACT: tl.constexpr):
    by_mean, by_s = discretized_logistic_slopes(mean, s, x, EXACT)
    return g * by_mean, g * by_s, 0.0
