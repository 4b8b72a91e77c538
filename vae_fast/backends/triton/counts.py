"""Members of the op `likelihood` for counts, of means and inverse dispersions, as in scvi-tools.

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
_NOTHING = tl.constexpr(1e-8)  # a count below this is none


@triton.jit
def excess(ratio, w):
    """log(ratio) - 2 w, for w = (ratio - 1) / (ratio + 1)."""
    z = w * w
    near = 0.2859249898976897 + z * (0.21704533724950398 + z * 0.23233556616844167)
    near = w * z * (0.6666666733116267 + z * (0.3999970322550681 + z * near))
    return tl.where(tl.abs(w) < 1 / 3, near, log(ratio) - 2.0 * w)


@triton.jit
def stirling(y):
    """lgamma(y) - (y - 1/2) log y + y - log(2 pi) / 2, y > 0."""
    small = y < 1.0
    w = divide(1.0, tl.where(small, y + 1.0, y))
    z = w * w
    series = 0.0003586622795957151 + z * (-0.00018650350657356974 + z * 4.4768881215854345e-05)
    series = 0.000781169310598219 + z * (-0.0004927959034560854 + z * series)
    series = w * (0.08333332816776402 + z * (-0.0027771574105765894 + z * series))
    return tl.where(small, series - 1.0 - (y + 0.5) * log(y * w), series)  # Gamma(y + 1) = y Gamma(y)


@triton.jit
def digamma_rest(y, inverse):
    """digamma(y) - log y + 1 / (2 y), y > 0."""
    small = y < 1.0
    w = tl.where(small, divide(1.0, y + 1.0), inverse)
    z = w * w
    series = 0.0026294225731111256 + z * (-0.001450852316059157 + z * 0.00035892482321260577)
    series = 0.0038519703683607535 + z * (-0.0031793740935601713 + z * series)
    series = -z * (0.08333328687304004 + z * (-0.008327670291003213 + z * series))
    return tl.where(small, series - log(y * w) - 0.5 * (inverse + w), series)


@triton.jit
def poisson_nll(mean, _q, _r, x, EXACT: tl.constexpr):
    # x log(x / mu) - (x - mu), and log x! without Stirling's large terms
    mu = mean + _EPS
    d = x - mu
    w = divide(d, x + mu)
    nll = x * excess(divide(x, mu), w) + d * w + (0.5 * log(6.283185307179586 * x) + stirling(x))
    return tl.where(x == 0, mu, nll)


@triton.jit
def poisson_grads(mean, _q, _r, x, g, EXACT: tl.constexpr):
    mu = mean + _EPS
    return g * divide(mu - x, mu), 0.0, 0.0


@triton.jit
def _terms(mean, theta, x):
    """What value and gradients share: mu, theta, x - mu, X = theta + x, 1 / Y for Y = theta + mu, and the w and the
    excess of X / Y."""
    mu = mean + _EPS
    th = theta + _EPS
    d = x - mu
    X = th + x
    inverse = divide(1.0, th + mu)
    w = divide(d, 2.0 * th + (x + mu))
    return mu, th, d, X, inverse, w, excess(X * inverse, w)


@triton.jit
def _nll(terms, x):
    """x log(x / mu) - X log(X / Y), whose first-order terms cancel, and what Stirling leaves of the lgammas.

    With a theta above |x - mu| the excesses of the two logs are small and differ. With a smaller one they may be large
    and nearly the same, and the form is x log(x Y / (mu X)) - theta log(X / Y), of terms that are small with theta.
    """
    mu, th, d, X, _, w, e = terms
    by_mu = divide(1.0, mu)
    by_X = divide(1.0, X)
    c = divide(1.0, x + mu)
    large = th >= tl.abs(d)
    a = (th * by_X) * (d * by_mu)
    v = tl.where(large, d * c, divide(a, 2.0 + a))
    r = x * by_mu * tl.where(large, 1.0, (th + mu) * by_X)
    linear = tl.where(large, 0.0, 2.0 * v - 4.0 * th * w * c)
    deviance = 2.0 * th * w * (d * c) + x * (excess(r, v) + linear) - tl.where(large, X, th) * e
    rest = stirling(x) + (stirling(th) - stirling(X))
    rest += log(tl.sqrt(6.283185307179586 * x) * tl.sqrt(divide(X, th)))
    return tl.where(x == 0, th * (-2.0 * w - e), deviance + rest)


@triton.jit
def _grads(terms, x):
    mu, th, d, X, inverse, w, e = terms
    by_th = divide(1.0, th)
    by_X = divide(1.0, X)
    by_theta = w * (d * inverse) - e  # u - log(1 + u), u = (x - mu) / Y
    by_theta -= 0.5 * (x * by_th) * by_X + (digamma_rest(X, by_X) - digamma_rest(th, by_th))
    return -divide(d, mu) * (th * inverse), by_theta


@triton.jit
def negative_binomial_nll(mean, theta, _r, x, EXACT: tl.constexpr):
    return _nll(_terms(mean, theta, x), x)


@triton.jit
def negative_binomial_grads(mean, theta, _r, x, g, EXACT: tl.constexpr):
    by_mean, by_theta = _grads(_terms(mean, theta, x), x)
    return g * by_mean, g * by_theta, 0.0


@triton.jit
def zero_inflated_negative_binomial_nll(mean, theta, p, x, EXACT: tl.constexpr):
    none = x < _NOTHING
    x = tl.where(none, 0.0, x)
    nb = _nll(_terms(mean, theta, x), x)
    # -log(sigmoid(p) + sigmoid(-p) exp(-nb)): from 1 where that is near, else the difference of two softplus
    q = sigmoid(-p, True) * -expm1(-nb, 0.0, True)
    far = (
        tl.minimum(tl.maximum(-p, 0.0), nb) + log1p(exp(-tl.abs(p), True)) - log1p(exp(-tl.abs(p + nb), True))
    )
    zero = tl.where(q < 0.5, log1p(divide(q, 1.0 - q)), far)
    return tl.where(none, zero, softplus(p, True) + nb)


@triton.jit
def zero_inflated_negative_binomial_grads(mean, theta, p, x, g, EXACT: tl.constexpr):
    none = x < _NOTHING
    x = tl.where(none, 0.0, x)
    terms = _terms(mean, theta, x)
    by_mean, by_theta = _grads(terms, x)
    nb = terms[1] * (-2.0 * terms[5] - terms[6])  # of a count of 0
    q = tl.where(none, sigmoid(-p - nb, True), 1.0)  # the zero is one of the negative binomial's
    by_p = sigmoid(-p, True) * sigmoid(p + nb, True) * expm1(-nb, 0.0, True)
    return g * q * by_mean, g * q * by_theta, g * tl.where(none, by_p, sigmoid(p, True))
