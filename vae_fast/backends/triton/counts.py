"""Likelihoods of the op `likelihood` for counts, of means and inverse dispersions, as in scvi-tools.

The textbook writes them with lgamma, and at theta = 1e8 the difference of two lgamma leaves no digit of float32. Here
Stirling's formula is taken out of each lgamma by hand, its large terms are combined on paper (Loader, "Fast and
accurate computation of binomial probabilities", 2000), and what is left to compute are terms that cancel little:

    log(X / Y) = 2 w + excess,  w = (X - Y) / (X + Y)
    lgamma(y) = (y - 1/2) log y - y + log(2 pi) / 2 + stirling(y)
    digamma(y) = log y - 1 / (2 y) + digamma_rest(y)

Always to float32 accuracy: the parameters of 16 bits are exact numbers too, and counts are large.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import divide, exp, expm1, log, log1p, sigmoid, softplus

_EPS = tl.constexpr(1e-8)  # added to means and thetas
_NOTHING = tl.constexpr(1e-8)  # a count closer to 0 than this is none
_LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def in_domain(v):
    """v, at most the largest number, or NaN where it is negative."""
    return tl.where(v >= 0, tl.minimum(v, _LARGEST), float("nan"))


@triton.jit
def growth_of_infinite(mean, x):
    """What is added to a result that grows without bound with the mean and with x, and has no limit in both."""
    of_mean = tl.where(mean > _LARGEST, float("inf"), 0.0)
    return tl.where(x > _LARGEST, float("inf") - of_mean, of_mean)


@triton.jit
def unit_of(total):
    """The unit in which numbers of this sum are computed, and 1 / unit: no product of two of them leaves float32."""
    large = total > 4.611686018427388e18  # 2^62
    return tl.where(large, 7.378697629483821e19, 1.0), tl.where(large, 1.3552527156068805e-20, 1.0)  # 2^66


@triton.jit
def excess(a, b, ratio, w):
    """log(ratio) - 2 w, for ratio = a / b, which may leave float32, and w = (ratio - 1) / (ratio + 1)."""
    z = w * w
    # fit_polynomials.py log_excess: (2·atanh(w) - 2w)/w³ of w², w <= 1/3; 3.0e-08 relative
    near = 0.2859250009059906 + z * (0.21704532206058502 + z * 0.2323356419801712)
    near = w * z * (0.6666666865348816 + z * (0.3999970257282257 + z * near))
    extreme = (ratio < 8.673617379884035e-19) | (ratio > 1.152921504606847e18)  # 2^-60, 2^60
    return tl.where(tl.abs(w) < 1 / 3, near, tl.where(extreme, log(a) - log(b), log(ratio)) - 2.0 * w)


@triton.jit
def _stirling_series(z):
    """Of y >= 1, z = 1 / y^2: y times what `stirling` gives."""
    # fit_polynomials.py stirling_square: y·(Stirling's error of y) of 1/y², y >= 1; 6.6e-08 relative
    series = 0.00035866719554178417 + z * (-0.0001865079830167815 + z * 4.477040420169942e-05)
    series = 0.0007811698596924543 + z * (-0.0004927983973175287 + z * series)
    return 0.0833333283662796 + z * (-0.002777157351374626 + z * series)


@triton.jit
def stirling(y):
    """lgamma(y) - (y - 1/2) log y + y - log(2 pi) / 2, y > 0."""
    small = y < 1.0
    w = divide(1.0, tl.where(small, y + 1.0, y))
    series = w * _stirling_series(w * w)
    return tl.where(small, series - 1.0 - (y + 0.5) * log(y * w), series)  # Gamma(y + 1) = y Gamma(y)


@triton.jit
def log_factorial_minus(x):
    """lgamma(x + 1) - x log x + x, x >= 1e-8."""
    by_x = divide(1.0, tl.maximum(x, 1.0))
    z = by_x * by_x
    log_x = log(x)
    large = 0.9189385332046728 + 0.5 * log_x + by_x * _stirling_series(z)
    # fit_polynomials.py log_factorial: log Γ(1 + x)/x, 0 <= x <= 1; 5.8e-08 absolute
    over_x = -0.08021333813667297 + x * (0.03038938343524933 + x * -0.005424926057457924)
    over_x = 0.269104540348053 + x * (-0.19880534708499908 + x * (0.14025796949863434 + x * over_x))
    over_x = -0.5772156119346619 + x * (0.8224625587463379 + x * (-0.40055522322654724 + x * over_x))
    return tl.where(x < 1.0, x * (1.0 - log_x + over_x), large)


@triton.jit
def digamma_rest(y, inverse):
    """digamma(y) - log y + 1 / (2 y), y > 0."""
    small = y < 1.0
    w = tl.where(small, divide(1.0, y + 1.0), inverse)
    z = w * w
    # fit_polynomials.py digamma_square: (log(y) - 1/(2y) - digamma(y))·y² of 1/y², y >= 1; 6.0e-07 relative
    series = 0.002629471244290471 + z * (-0.0014508964959532022 + z * 0.00035893978201784194)
    series = 0.0038519760128110647 + z * (-0.003179398598149419 + z * series)
    series = -z * (0.08333328366279602 + z * (-0.008327670395374298 + z * series))
    return tl.where(small, series - log(y * w) - 0.5 * (inverse + w), series)


@triton.jit
def poisson_nll(mean, _q, _r, x, EXACT: tl.constexpr):
    # x log(x / mu) - (x - mu), and log x! without Stirling's large terms
    none = tl.abs(x) < _NOTHING
    x = tl.where(none, 1.0, x)
    mu = mean + _EPS
    unit, scale = unit_of(x + mu)
    m = in_domain(mu) * scale
    c = in_domain(x) * scale
    d = c - m
    w = divide(d, c + m)
    nll = unit * (c * excess(c, m, divide(c, m), w) + d * w) + log_factorial_minus(c * unit)
    nll += growth_of_infinite(mu, x)
    return tl.where(none, tl.where(mu >= 0, mu, float("nan")), nll)


@triton.jit
def poisson_grads(mean, _q, _r, x, g, EXACT: tl.constexpr):
    none = tl.abs(x) < _NOTHING
    mu = in_domain(mean + _EPS)
    x = tl.where(none | (x >= 0), x, float("nan"))
    _, scale = unit_of(mu)  # a divisor of the middle of the range
    slope = divide(scale * mu - scale * x, scale * mu)
    slope = tl.where(mean > _LARGEST, 1.0 + (x - x), slope)
    return g * tl.where(none, tl.where(mu >= 0, 1.0, float("nan")), slope), 0.0, 0.0


@triton.jit
def _terms(mean, theta, x):
    """What value and gradients share, in units of `unit`: mu, theta, x (0 where it counts nothing), X = theta + x,
    Y = theta + mu, 1 / Y, w, theta w and the excess of X / Y for their w; whether theta is infinite, what an infinite
    mu or x adds to the value, whether mu is infinite, and what an infinite x takes from its derivative."""
    x = tl.where(tl.abs(x) < _NOTHING, 0.0, x)
    mu = mean + _EPS
    th = theta + _EPS
    poisson = th > _LARGEST
    infinite = growth_of_infinite(mu, x)
    endless = tl.where(x > _LARGEST, infinite, 0.0)
    no_limit = mu > _LARGEST
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
def _nll(terms):
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
def _grads(terms):
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


@triton.jit
def negative_binomial_nll(mean, theta, _r, x, EXACT: tl.constexpr):
    return _nll(_terms(mean, theta, x))


@triton.jit
def negative_binomial_grads(mean, theta, _r, x, g, EXACT: tl.constexpr):
    by_mean, by_theta = _grads(_terms(mean, theta, x))
    return g * by_mean, g * by_theta, 0.0


@triton.jit
def zero_inflated_negative_binomial_nll(mean, theta, p, x, EXACT: tl.constexpr):
    nb = _nll(_terms(mean, theta, x))
    # -log(sigmoid(p) + sigmoid(-p) exp(-nb)): from 1 where that is near, else the difference of two softplus
    q = sigmoid(-p, True) * -expm1(-nb)
    far = (
        tl.minimum(tl.maximum(-p, 0.0), nb) + log1p(exp(-tl.abs(p), True)) - log1p(exp(-tl.abs(p + nb), True))
    )
    zero = tl.where(q < 0.5, log1p(divide(q, 1.0 - q)), far)
    return tl.where(tl.abs(x) < _NOTHING, zero, softplus(p, True) + nb)


@triton.jit
def zero_inflated_negative_binomial_grads(mean, theta, p, x, g, EXACT: tl.constexpr):
    none = tl.abs(x) < _NOTHING
    terms = _terms(mean, theta, x)
    by_mean, by_theta = _grads(terms)
    nb = terms[9] * (-2.0 * terms[7] - terms[1] * terms[8]) + terms[11]  # of a count of 0
    q = tl.where(none, sigmoid(-p - nb, True), 1.0)  # the zero is one of the negative binomial's
    by_p = sigmoid(-p, True) * sigmoid(p + nb, True) * expm1(-nb)
    by_theta = q * tl.where(none & (nb > _LARGEST), 0.0, by_theta)
    # As the value is NaN where one of them is.
    g += tl.where((by_mean != by_mean) | (p != p), float("nan"), 0.0)
    return g * q * by_mean, g * by_theta, g * tl.where(none, by_p, sigmoid(p, True))
