"""The latent op's other parametrizations than the log-variance, as csrc/formulas/gaussian_kl.h has them.

FORM is a name of contract.PARAMETRIZATIONS, or "exact logvar" or "exact logstd" where there is no epsilon: there
log sigma^2 is a multiple of raw. AS_Q: the prior is read likewise; else it is (mu_p, logvar_p). The arithmetic is that
of float32 tensors for 16 bits, too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import exp, expm1, exponential, factors, scaled_square

_LEAST_NORMAL = tl.constexpr(2.0**-126)


@triton.jit
def soft_clamp(x, limit):
    """limit tanh(x / limit) and its derivative, both without cancellation; x and 1 without a limit."""
    if limit is None:
        return x, 1.0
    else:
        c = tl.cast(limit, tl.float32)
        twice = -2.0 * tl.abs(tl.div_rn(x, c))
        e = exp(twice, True)
        total = 1.0 + e
        size = c * tl.div_rn(-expm1(twice), total)
        return tl.where(x < 0, -size, size), tl.div_rn(4.0 * e, total * total)


@triton.jit
def log_and_minus(t, one_plus_t):
    """log(1 + t), and that less t without cancellation; of a normal number, NaN stays NaN."""
    bits = one_plus_t.to(tl.int32, bitcast=True) - 0x3F3504F3
    k = (bits >> 23).to(tl.float32)
    mantissa = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    far = (one_plus_t < 0.7071067690849304) | (one_plus_t >= 1.4142135381698608)
    f = tl.where(far, mantissa - 1.0, t)
    # fit_polynomials.py log1p_minus: (log(1 + f) - f + f²/2)/f³, 1/√2 <= 1 + f <= √2; 3.5e-08 times |f|
    p = -0.1304200291633606 + f * (0.1286744475364685 + f * -0.08082135766744614)
    p = 0.20002363622188568 + f * (-0.16633513569831848 + f * (0.14180804789066315 + f * p))
    p = 0.33333316445350647 + f * (-0.25000545382499695 + f * p)
    rest = tl.fma(k, -2.12194440e-4, f * f * (f * p - 0.5))
    log = tl.fma(k, 0.693359375, f + rest)
    return log, tl.where(far, log - t, rest)


@triton.jit
def std_of(raw, epsilon, FORM: tl.constexpr):
    """sigma and sigma - 1, dsigma/draw and dlog(sigma)/draw."""
    offset = tl.cast(epsilon, tl.float32)
    far = raw > 20.0
    if FORM == "logvar":
        first, second, half_expm1, _ = exponential(raw, True)
        root = first * second
        square = root * root
        var = square + offset
        share = 1.0 + tl.div_rn(offset, square)
        value = tl.sqrt_rn(tl.where(far, share, var)) * tl.where(far, root, 1.0)
        log_slope = 0.5 * tl.where(far, tl.div_rn(1.0 + 0.0 * share, share), tl.div_rn(square, var))
        minus_1 = tl.where(far, value - 1.0, tl.div_rn(2.0 * half_expm1 + offset, value + 1.0))
        return value, minus_1, value * log_slope, log_slope
    elif FORM == "logstd":
        first, second, _, _ = exponential(2.0 * raw, True)
        e = first * second
        value = e + offset
        share = 1.0 + tl.div_rn(offset + 0.0 * e, e)
        log_slope = tl.where(far, tl.div_rn(1.0 + 0.0 * share, share), tl.div_rn(e, value))
        minus_1 = tl.where(tl.abs(raw) < 0.5, expm1(raw), e - 1.0) + offset
        return value, minus_1, e, log_slope
    elif FORM == "softplus":
        first, second, _, _ = exponential(-2.0 * tl.abs(raw), True)
        e = first * second
        log, _ = log_and_minus(e, 1.0 + e)
        log = tl.where(e < 1e-4, e - 0.5 * e * e, log)  # 1 + e has lost e's last digits
        value = tl.maximum(raw, 0.0, propagate_nan=tl.PropagateNan.ALL) + log + offset
        slope = tl.div_rn(tl.where(raw < 0.0, e, 1.0), 1.0 + e)
        return value, value - 1.0, slope, tl.where(value < _LEAST_NORMAL, 1.0, tl.div_rn(slope, value))
    else:
        value = raw + offset
        one = tl.full(value.shape, 1.0, tl.float32)
        return value, (raw - 1.0) + offset, one, tl.div_rn(one, value)


@triton.jit
def log_std(value, raw, FORM: tl.constexpr):
    """log sigma: below float32's normal numbers too, -inf of 0 and NaN of what is negative."""
    is_small = value < _LEAST_NORMAL
    x = tl.where(is_small, value * 1.8446744073709552e19, value)
    log, _ = log_and_minus(x - 1.0, x)
    if FORM == "softplus":
        return tl.where(is_small, raw, log)
    else:
        log = tl.where(is_small, log - 44.3614195558365, log)
        return tl.where(value == 0.0, float("-inf"), tl.where(value < 0.0, float("nan"), log))


@triton.jit
def half_square_minus_log(r, minus_1, log_r):
    """(r^2 - 1) / 2 - log r of r and r - 1; log_r stands where r is no normal number."""
    _, minus = log_and_minus(minus_1, r)
    minus = tl.where(r < _LEAST_NORMAL, log_r - minus_1, minus)
    return tl.fma(0.5 * minus_1, minus_1, -minus)


@triton.jit
def logvar_of(raw, FORM: tl.constexpr):
    if FORM == "exact logvar":
        return raw
    else:
        return raw + raw


@triton.jit
def sample_of(m, raw, mp, rp, epsilon, FORM: tl.constexpr, AS_Q: tl.constexpr):
    """Two factors of sigma and KL's term, of what has been clamped; mp and rp are None for the standard normal."""
    if FORM == "exact logvar" or FORM == "exact logstd":
        lv = logvar_of(raw, FORM)
        first, second, _, rest = exponential(lv, True)
        if mp is None:
            term = 0.5 * m * m + rest
        else:
            lvp = logvar_of(rp, FORM) if AS_Q else rp
            square, _ = scaled_square(m - mp, lvp)
            _, _, _, rest = exponential(lv - lvp, True)
            term = square + rest
        return first, second, term
    else:
        value, minus_1, _, _ = std_of(raw, epsilon, FORM)
        log = log_std(value, raw, FORM)
        if mp is None:
            term = tl.fma(0.5 * m, m, half_square_minus_log(value, minus_1, log))
        else:
            r, r_minus_1, log_p, square, _, _, _ = to_prior(m, value, mp, rp, epsilon, FORM, AS_Q)
            term = square + half_square_minus_log(r, r_minus_1, log - log_p)
        return value, tl.full(value.shape, 1.0, tl.float32), term


@triton.jit
def to_prior(m, value, mp, rp, epsilon, FORM: tl.constexpr, AS_Q: tl.constexpr):
    """sigma / sigma_p and that less 1, log sigma_p, ((m - m_p) / sigma_p)^2 / 2, its slope by m, two factors of
    1 / sigma_p, and dlog(sigma_p)/draw_p."""
    if AS_Q:
        p, _, _, log_slope = std_of(rp, epsilon, FORM)
        scaled = tl.div_rn(m - mp, p)
        inverse = tl.div_rn(tl.full(p.shape, 1.0, tl.float32), p)
        return (
            tl.div_rn(value + 0.0 * p, p),
            (value - p) * inverse,
            log_std(p, rp, FORM),
            0.5 * scaled * scaled,
            tl.div_rn(scaled, p),
            inverse,
            log_slope,
        )
    else:
        square, slope = scaled_square(m - mp, rp)
        first, power = factors(-0.5 * rp, 2)
        r = value * power * first * power
        return r, r - 1.0, 0.5 * rp, square, slope, first * power * power, 0.5


@triton.jit
def kl_slopes(m, raw, mp, rp, epsilon, FORM: tl.constexpr, AS_Q: tl.constexpr):
    """Of KL by mu, by raw and by the prior's raw."""
    if FORM == "exact logvar" or FORM == "exact logstd":
        lv = logvar_of(raw, FORM)
        times: tl.constexpr = 1.0 if FORM == "exact logvar" else 2.0
        if mp is None:
            _, _, up, _ = exponential(lv, True)
            return m, times * up, up
        else:
            lvp = logvar_of(rp, FORM) if AS_Q else rp
            square, slope = scaled_square(m - mp, lvp)
            _, _, up, _ = exponential(lv - lvp, True)
            of_prior = -(up + square)
            return slope, times * up, times * of_prior if AS_Q else of_prior
    else:
        value, minus_1, slope, log_slope = std_of(raw, epsilon, FORM)
        if mp is None:
            return m, minus_1 * (slope + log_slope), minus_1
        else:
            _, r_minus_1, _, square, by_mu, inverse, log_slope_p = to_prior(
                m, value, mp, rp, epsilon, FORM, AS_Q
            )
            by_raw = r_minus_1 * (slope * inverse + log_slope)
            return by_mu, by_raw, -tl.fma(2.0, square, r_minus_1 * (r_minus_1 + 2.0)) * log_slope_p


@triton.jit
def times_std_slope(d, raw, epsilon, FORM: tl.constexpr):
    """d dsigma/draw"""
    if FORM == "exact logvar" or FORM == "exact logstd":
        first, second, _, _ = exponential(logvar_of(raw, FORM), True)
        if FORM == "exact logvar":
            d = 0.5 * d
        return d * first * second
    else:
        _, _, slope, _ = std_of(raw, epsilon, FORM)
        return d * slope
