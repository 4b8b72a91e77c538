"""Per-element math in float32: what csrc/math and csrc/formulas are to the native backends.

EXACT asks for PyTorch's float32 accuracy, 1 or 2 units in the last place. Without it (16-bit tensors, whose rounding
is 2^-9 or 2^-12) results are good to about 2^-20 in half the instructions.
Every function takes NaN to NaN and has the limits of the formula at +-inf.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.target_info import is_cuda

from .launch import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)

# Adding 1.5 * 2^23 rounds a float to an integer, which then sits in its low bits.
_ROUND = tl.constexpr(12582912.0)


@triton.jit
def _power_of_2(rounded):
    """2^n of n + 1.5 * 2^23, n from -126 to 127: the low bits become the exponent. n = -127 gives 0, 128 infinity."""
    bits = rounded.to(tl.int32, bitcast=True)
    return ((bits << 23) + 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _remainder(x, n):
    """x - n log 2; n times the first part of log 2 is exact."""
    return tl.fma(n, -1.428606765330187e-06, tl.fma(n, -0.693145751953125, x))


@triton.jit
def exp(x, EXACT: tl.constexpr):
    """exp(x). Below 2^-126 it is 0."""
    if EXACT:  # x = n log 2 + r, 0 <= r <= log 2: exp2 of a small argument, which rounding hardly moves
        t = tl.minimum(tl.maximum(tl.fma(x, 1.4426950408889634, -0.5), -127.0), 128.0) + _ROUND
        return tl.exp2(_remainder(x, t - _ROUND) * 1.4426950408889634) * _power_of_2(t)
    else:
        return tl.exp2(x * 1.4426950408889634)


@triton.jit
def expm1(x):
    """exp(x) - 1 without cancellation."""
    x = tl.where(x < -80.0, -80.0, x)  # x = n log 2 + r; 2^n (expm1(r) + 1) - 1
    t = tl.minimum(x * 1.4426950408889634, 127.0) + _ROUND
    r = _remainder(x, t - _ROUND)
    # fit_polynomials.py expm1: (exp(r) - 1 - r)/r², |r| <= 0.501·ln 2; 1.8e-08 relative to expm1
    q = 0.04166720435023308 + r * (0.00836664717644453 + r * 0.001388249802403152)
    q = 0.4999999701976776 + r * (0.16666541993618011 + r * q)
    s = _power_of_2(t)
    return tl.fma(s, tl.fma(r * r, q, r), s - 1.0)


@triton.jit
def exponential(x, EXACT: tl.constexpr):
    """Two factors of exp(x / 2), expm1(x) / 2, and (expm1(x) - x) / 2 without cancellation: what a Gaussian sample and
    its KL divergence are made of, for x a log-variance.

    The factors hold exp(x / 2) for |x| <= 352; the halves fit into float32 a little longer than the whole."""
    if EXACT:  # x / 2 = k log 2 + r, k even; 2^(k/2) and 2^(k/2) exp(r), from one polynomial
        h = tl.minimum(0.5 * x, 176.0594, propagate_nan=tl.PropagateNan.ALL)
        h = tl.maximum(h, -176.0, propagate_nan=tl.PropagateNan.ALL)
        t = tl.fma(h, 0.5 * 1.4426950408889634, _ROUND)
        k = t - _ROUND
        r = tl.fma(k, 2 * -1.428606765330187e-06, tl.fma(k, 2 * -0.693145751953125, h))
        # fit_polynomials.py exp_wide: (exp(r) - 1 - r)/r², |r| <= 1.002·ln 2; 1.1e-08 relative
        q = 0.001388945383951068 + r * (0.00020074357453268021 + r * 2.487877600702923e-05)
        q = 0.1666667014360428 + r * (0.04166664928197861 + r * (0.00833277314901352 + r * q))
        square = r * r
        minus = square * (0.5 + r * q)
        p = r + minus
        first = _power_of_2(t)
        second = tl.fma(first, p, first)
        near = k == 0
        half = 0.5 * p
        near_minus = tl.fma(half, p, minus)
        near_expm1 = tl.fma(half, p, p)
    else:
        first = tl.exp2(tl.minimum(x * (0.25 * 1.4426950408889634), 127.0, propagate_nan=tl.PropagateNan.ALL))
        second = first
        near = tl.abs(x) < 0.25
        # fit_polynomials.py exponential_16: (exp(x) - 1 - x)/(2x²), |x| <= 1/4; 1.4e-06 relative
        q = 0.08333347737789154 + x * (0.020876750349998474 + x * 0.004168732091784477)
        near_minus = x * x * (0.24999965727329254 + x * q)
        near_expm1 = tl.fma(0.5, x, near_minus)
    root = first * second
    far = tl.fma(0.5 * root, root, -0.5)
    return first, second, tl.where(near, near_expm1, far), tl.where(near, near_minus, tl.fma(-0.5, x, far))


@triton.jit
def factors(x, POWER: tl.constexpr):
    """m and s with exp(x) = m s^POWER, for what is multiplied by one after the other. s is from 2^-126 to 2^127, or 0;
    m is infinite for x = inf."""
    x = tl.where(x == float("inf"), x, clamp(x, -88.125 * POWER, 88.125 * POWER))
    t = tl.minimum(x * (1.4426950408889634 / POWER), 127.0) + _ROUND
    return tl.exp2(_remainder(x, POWER * (t - _ROUND)) * 1.4426950408889634), _power_of_2(t)


@triton.jit
def times_exp(d, x):
    """d exp(x), wherever it fits float32 though exp(x) may not; 0 for d = 0, but NaN where x is infinite too."""
    m, s = factors(x, 4)
    return d * s * s * m * s * s


@triton.jit
def scaled_square(d, logvar):
    """d^2 exp(-logvar) / 2 and its derivative by d, wherever they fit float32 though exp(-logvar) may not."""
    m, s = factors(-logvar, 4)
    root = d * s * s
    half = root * (0.5 * m)
    return half * root, 2.0 * half * s * s


@triton.jit
def log1p(t):
    """log(1 + t) for 0 <= t <= 1."""
    # fit_polynomials.py log1p_8: log(1 + e)/e, 0 <= e <= 1; 6.5e-08 relative
    p = 0.07822591066360474 + t * (-0.02950521558523178 + t * 0.005232688970863819)
    p = 0.19106005132198334 + t * (-0.13663241267204285 + t * p)
    p = 0.3331909775733948 + t * (-0.2484298199415207 + t * p)
    return t * (0.9999999403953552 + t * (-0.4999949336051941 + t * p))


@triton.jit
def log2(x):
    """The hardware's log2 of x >= 0: off by 2^-22, relative, and within a factor of 2 of x = 1 absolute."""
    if _INTERPRETED:
        return tl.log2(x)
    elif is_cuda():
        return libdevice.fast_log2f(x)  # lg2.approx; tl.log2 would be a polynomial of 20 instructions
    else:
        return tl.log2(x)


@triton.jit
def log(x):
    return 0.6931471805599453 * log2(x)


@triton.jit
def divide(a, b):
    """a / b to 2 units in the last place, for 2^-126 <= |b| <= 2^126."""
    if _INTERPRETED:
        return a / b
    elif is_cuda():
        return libdevice.fast_dividef(a, b)  # two instructions; a / b scales what is larger
    else:
        return a / b


@triton.jit
def reciprocal(x):
    """1 / x to 1 unit in the last place, for 2^-126 <= |x| <= 2^126."""
    if _INTERPRETED:
        return 1.0 / x
    elif is_cuda():
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def clamp(x, lo, hi):
    """torch.clamp: NaN stays NaN."""
    if lo is not None:
        x = tl.where(x < tl.cast(lo, tl.float32), tl.cast(lo, tl.float32), x)
        x = tl.where(x > tl.cast(hi, tl.float32), tl.cast(hi, tl.float32), x)
    return x


@triton.jit
def unclamped(x, lo, hi, value):
    """`value` where torch.clamp lets a gradient pass: between the bounds and at them."""
    if lo is not None:
        value = tl.where((x >= tl.cast(lo, tl.float32)) & (x <= tl.cast(hi, tl.float32)), value, 0.0)
    return value


@triton.jit
def softplus(x, EXACT: tl.constexpr):
    """log(1 + exp(x))"""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p(exp(-tl.abs(x), EXACT))


@triton.jit
def sigmoid(x, EXACT: tl.constexpr):
    """1 / (1 + exp(-x)), with its relative accuracy in the left tail too."""
    t = exp(-tl.abs(x), EXACT)
    return divide(tl.where(x > 0, 1.0, t), 1.0 + t)
