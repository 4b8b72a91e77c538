"""mpmath's value of every documented formula and of its derivatives, one element at a time.

Each function takes the element's inputs as mpmath numbers and returns a `Number` for the result and for the
derivative by every parameter: the value, and what rounding acts on, the sum of the absolute values of the formula's
terms. The terms are those of a form that a careful programmer would evaluate, so that the scale excuses no cancellation
that can be avoided; the comment on each function says which form. An intermediate sum s that is rounded before it
enters f adds |f'(s)| times the absolute terms of s.

Infinite inputs follow the formula in extended real arithmetic: exp(-inf) = 0, inf - inf and 0 inf are NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from mpmath import mp, mpf

Mpf = Any  # mpmath is not typed
BITS = 220  # of working precision; functions that cancel more add to it
NAN, INF = mp.nan, mp.inf
ZERO, HALF, QUARTER = mpf(0), mpf(1) / 2, mpf(1) / 4
MANY = mpf(2) ** 20  # what multiplies a tail by more is no excuse


class Number(NamedTuple):
    value: Mpf
    scale: Mpf
    tails: Mpf = mpf(1)  # what multiplies tails of exp, which may be held at the smallest normal number
    defined: bool = True


def total(*terms: Mpf, rounding: Mpf = 0, tails: Mpf = 1) -> Number:
    """A sum of terms; `rounding` is what the rounding of intermediate sums acts on."""
    return Number(sum(terms, mpf(0)), sum(map(abs, terms), mpf(0)) + abs(rounding), mpf(tails))


def undefined(results: int) -> list[Number]:
    """Outside the domain."""
    return [Number(NAN, mpf(0), defined=False)] * results


def sigmoid(y: Mpf) -> Mpf:
    return 1 / (1 + mp.exp(-y)) if y >= 0 else mp.exp(y) / (1 + mp.exp(y))


def tail(y: Mpf) -> Mpf:
    """log(1 + exp(-|y|))"""
    return mp.log1p(mp.exp(-abs(y)))


def softplus(y: Mpf) -> Mpf:
    return max(y, mpf(0)) + tail(y)


# Images and other numbers


def bernoulli(x: Mpf, el: Mpf) -> list[Number]:
    """On [0, 1] nothing cancels: (1 - x) l + tail for l > 0, -x l + tail else; and (1 - x) σ(l) - x σ(-l), whose two
    terms are the derivative's own."""
    side = (1 - x) * el if el > 0 else -x * el
    return [total(side, tail(el)), total((1 - x) * sigmoid(el), -x * sigmoid(-el))]


def bernoulli_from_probs(x: Mpf, p: Mpf) -> list[Number]:
    """torch's binary_cross_entropy: -(x log p + (1 - x) log(1 - p)), each logarithm at least -100; two terms. The
    derivative is (p - x) / max(p (1 - p), 1e-12), a product of factors without cancellation: p - x is exact where it
    is small."""
    if not (0 <= p <= 1 and 0 <= x <= 1):  # torch raises there, kernels cannot
        return undefined(2)
    log_p = max(mp.log(p), mpf(-100))
    log_q = max(mp.log1p(-p) if p < 1 else -INF, mpf(-100))
    slope = (p - x) / max(p * (1 - p), mpf("1e-12"))
    return [total(-x * log_p, -(1 - x) * log_q), total(slope)]


def continuous_bernoulli(x: Mpf, el: Mpf) -> list[Number]:
    """Within |l| < 2: (1/2 - x) l + log(sinh(l/2) / (l/2)), and 1/2 - x + (mean - 1/2) for the derivative. Beyond, from
    the nearer end of [0, 1]: (1 - x) l + log(1 - e^-l) - log l, and (1 - x) - (1 - mean)."""
    a = abs(el)
    if a < mpf("1e-6"):
        density = el**2 / 24 - el**4 / 2880 + el**6 / 181440
        lean = el / 12 - el**3 / 720 + el**5 / 30240
    elif mp.isinf(a):
        density = lean = NAN
    else:
        density = mp.log(mp.sinh(a / 2) / (a / 2))
        lean = mp.coth(el / 2) / 2 - 1 / el
    if a < 2:
        return [total((HALF - x) * el, density), total(HALF - x, lean)]
    from_end = 1 / a - 1 / mp.expm1(a)
    side, near = ((1 - x) * el, 1 - x) if el > 0 else (-x * el, -x)
    nll = total(side, mp.log1p(-mp.exp(-a)), -mp.log(a))
    if mp.isinf(a):  # the logarithm is the smaller infinity
        nll = total(side if near else -INF)
    return [nll, total(near, -from_end if el > 0 else from_end)]


def gaussian(x: Mpf, mean: Mpf, logvar: Mpf) -> list[Number]:
    """The three terms of the formula; of the derivative by logvar 1/2 and the scaled square."""
    d, precision = x - mean, mp.exp(-logvar)
    nll = total(mp.log(2 * mp.pi) / 2, logvar / 2, d * d * precision / 2)
    return [nll, total(-d * precision), total(HALF, -d * d * precision / 2)]


def unit_gaussian(x: Mpf, mean: Mpf) -> list[Number]:
    return gaussian(x, mean, mp.mpf(0))[:2]


def laplace(x: Mpf, location: Mpf, s: Mpf) -> list[Number]:
    """The three terms of the formula; of the derivative by s 1 and the scaled distance."""
    d, inverse = x - location, mp.exp(-s)
    nll = total(mp.log(2), s, abs(d) * inverse)
    return [nll, total(-mp.sign(d) * inverse), total(mpf(1), -abs(d) * inverse)]


LEAST_LOG_SCALE = mpf(-7)
HALF_LEVEL = mpf(1) / 255


def logistic(t: Mpf, distance: Mpf, terms: Mpf, s: Mpf) -> list[Number]:
    """A level's nll and derivatives by mean and log-scale, `distance` = t - mean, a rounded sum of absolute `terms`.

    softplus(-b), softplus(a) and -log(1 - exp(-(b - a))) are never negative: the nll is its own scale. The derivatives
    are sums of what each edge and the width add. b and a come from sums that were rounded: t - mean +- 1/255.
    """
    inverse, h = mp.exp(-max(s, LEAST_LOG_SCALE)), HALF_LEVEL
    b, a, width = (distance + h) * inverse, (distance - h) * inverse, 2 * h * inverse
    first, last = t < mpf("-0.999"), t > mpf("0.999")
    above, below = mpf(0) if last else sigmoid(-b), mpf(0) if first else sigmoid(a)
    inner_b, inner_a = (terms + h + abs(distance + h)) * inverse, (terms + h + abs(distance - h)) * inverse
    sides = [*([] if last else [softplus(-b)]), *([] if first else [softplus(a)])]
    widths, of_width = [], []
    if not (first or last):
        # The level's width far below a float's range is still a number: log(1 - exp(-w)) is log w there.
        widths = [-mp.log(-mp.expm1(-width)) if width > 0 else INF]
        of_width = [width / mp.expm1(width) if width > 0 else NAN]
    nll = total(*sides, *widths, rounding=above * inner_b + below * inner_a)
    curve_b, curve_a = above * (1 - above) * inner_b, below * (1 - below) * inner_a
    by_mean = total(
        inverse * above, -inverse * below, rounding=inverse * (curve_b + curve_a), tails=max(mpf(1), inverse)
    )
    if s < LEAST_LOG_SCALE:
        return [nll, by_mean, total(mpf(0))]
    slopes = [b * above if above else mpf(0), -a * below if below else mpf(0)]  # 0 inf is 0 here
    steep = above * inner_b * (1 + abs(b) * (1 - above)) + below * inner_a * (1 + abs(a) * (1 - below))
    tails = min(MANY, max(mpf(1), abs(a), abs(b)))
    return [nll, by_mean, total(*slopes, *of_width, rounding=steep, tails=tails)]


def discretized_logistic(x: Mpf, mean: Mpf, s: Mpf) -> list[Number]:
    t = 2 * x - 1
    return logistic(t, t - mean, abs(t) + abs(t - mean), s)


# Counts. EPS is added to means and thetas; a count closer to 0 than NONE, which is 1e-8 in float32, is none.

EPS = mpf("1e-8")
NONE = mpf(0x15798EE) / 2**51


def precision(*numbers: Mpf) -> int:
    """Bits for differences of log-gammas and digammas of numbers of that size; few steps, so that both are cached."""
    largest = max(1, *(abs(n) for n in numbers if mp.isfinite(n)))
    return next(bits for bits in (BITS, 640, 1500) if largest < 2 ** ((bits - 200) // 3) or bits == 1500)


@functools.cache
def _log_gamma(y: Mpf, bits: int) -> Mpf:
    return mp.loggamma(y)


def log_gamma(y: Mpf) -> Mpf:
    return _log_gamma(y, mp.prec)


@functools.cache
def _digamma_minus_log(y: Mpf, bits: int) -> Mpf:
    return mp.psi(0, y) - mp.log(y)


def digamma_minus_log(y: Mpf) -> Mpf:
    return _digamma_minus_log(y, mp.prec)


def outside(x: Mpf, *positive: Mpf) -> bool:
    return x <= -NONE or any(p < 0 for p in positive)


def poisson(x: Mpf, mean: Mpf) -> list[Number]:
    """x log(x / mu) - (x - mu) and log x! - x log x + x are never negative: the nll is its own scale. The derivative
    has two terms, 1 and x / mu."""
    mu = mean + EPS
    if outside(x, mu):
        return undefined(2)
    if mp.isinf(x) or mp.isinf(mu):
        if mp.isinf(x) and mp.isinf(mu):
            return [total(NAN)] * 2
        return [Number(INF, INF), Number(mpf(1) if mp.isinf(mu) else -INF, mpf(1))]
    if abs(x) < NONE:
        return [total(mu), total(mpf(1))]
    with mp.workprec(precision(x, mu)):
        nll = mu - x * mp.log(mu) + log_gamma(x + 1)
        return [total(nll), total(mpf(1), -x / mu)]


def negative_binomial(x: Mpf, mean: Mpf, theta: Mpf) -> list[Number]:
    """As a sum of what is never negative, so that the nll is its own scale: the deviance x log(x / mu) - (x + th)
    log((x + th) / (mu + th)), log x! - x log x + x, log(1 + x / th) / 2, and the fall of Stirling's error from th to
    th + x. (The textbook's log-gammas grow with th and are no terms.) Of the derivative by theta: u - log(1 + u) with
    u = (x - mu) / (th + mu), two terms from |u| = 1/4 on, and the rise of digamma(y) - log y from th to th + x. Of a
    count that is a fraction the fall and the rise are differences, too. theta = inf is the Poisson limit."""
    mu, th = mean + EPS, theta + EPS
    if outside(x, mu, th):
        return undefined(3)
    if mp.isinf(th):
        return [*poisson(x, mean), total(mpf(0))]
    if mp.isinf(x) or mp.isinf(mu):
        if mp.isinf(x) and mp.isinf(mu):
            return [total(NAN)] * 3
        return [Number(INF, INF), Number(mpf(0) if mp.isinf(mu) else -INF, mpf(1)), Number(INF, INF)]
    with mp.workprec(precision(x, th)):
        of_mean = th / (th + mu)
        counted = mpf(0) if abs(x) < NONE else x
        u = (counted - mu) / (th + mu)
        logarithm = mp.log1p(u) if u > 0 else -mp.log1p((mu - counted) / (th + counted))
        apart = abs(u) + abs(logarithm) if abs(u) > QUARTER else mpf(0)
        if abs(x) < NONE:
            return [total(-th * logarithm), total(of_mean), total(u - logarithm, rounding=apart)]
        nll = log_gamma(th) + log_gamma(x + 1) - log_gamma(x + th)
        nll += th * mp.log1p(mu / th) + x * mp.log((mu + th) / mu)
        rest = [digamma_minus_log(y) for y in (th, th + x)]
        fraction = [abs(_stirling(y)) for y in (th, th + x)] if x < 1 else []
        apart += sum(map(abs, rest)) if x < 1 else 0
        by_theta = total(u - logarithm, rest[0] - rest[1], rounding=apart)
        return [total(nll, rounding=sum(fraction)), total(of_mean, -x / mu * of_mean), by_theta]


def _stirling(y: Mpf) -> Mpf:
    """Stirling's error."""
    return log_gamma(y) - (y - HALF) * mp.log(y) + y - mp.log(2 * mp.pi) / 2


def zero_inflated_negative_binomial(x: Mpf, mean: Mpf, theta: Mpf, p: Mpf) -> list[Number]:
    """Of a zero, with `zero` = -log NB(0): -log(1 - d) where d = σ(-p) (1 - exp(-zero)) is at most 1/2, else
    softplus(-p) - softplus(-p - zero), which is not small there: the nll is its own scale. The derivatives are products
    of probabilities, rounded as exp of the sum -p - zero. Of a count: softplus(p) and the negative binomial's terms.
    Outside the domain the derivative by p may be that of a count, which does not depend on the others."""
    mu, th = mean + EPS, theta + EPS
    if outside(x, mu, th):
        return [*undefined(3), Number(sigmoid(p), mpf(1), defined=False)]
    nll, by_mean, by_theta = negative_binomial(x, mean, theta)
    if abs(x) >= NONE:
        return [
            Number(softplus(p) + nll.value, softplus(p) + nll.scale),
            by_mean,
            by_theta,
            total(sigmoid(p)),
        ]
    zero = nll.value
    if mp.isinf(p):
        nothing = total(mpf(0), tails=MANY)
        return [nothing] * 4 if p > 0 else [nll, by_mean, by_theta, nothing]
    if mp.isinf(zero):
        return [total(softplus(-p)), total(mpf(0)), total(mpf(0)), total(-sigmoid(-p))]
    with mp.workprec(precision(p, mu, 0 if mp.isinf(th) else th)):
        q, inner = sigmoid(-p - zero), zero + abs(p + zero)  # q: P(the negative binomial's | a zero)
        loose = q * (1 + (1 - q) * inner)
        slopes = [
            Number(q * by.value, loose * by.scale, min(MANY, max(mpf(1), by.scale)))
            for by in (by_mean, by_theta)
        ]
        by_p = sigmoid(-p) * (1 - q) * mp.expm1(-zero)
        return [total(softplus(-p) - softplus(-p - zero)), *slopes, total(by_p, rounding=by_p * q * inner)]


# Classes, and mixtures of logistics


def shares(logits: Sequence[Mpf]) -> tuple[list[Mpf], list[Mpf], Mpf]:
    """Logits less the largest, their softmax, and log sum exp of the former."""
    largest = max(logits)
    less = [el - largest for el in logits]
    each = [mp.exp(el) for el in less]
    every = sum(each, mpf(0))
    return less, [e / every for e in each], mp.log(every)


def spread(p: Mpf, less: Mpf, log_sum: Mpf) -> Mpf:
    """What the rounding of less - log_sum does to p = exp of that."""
    return p * (abs(less) + log_sum) if p else mpf(0)


def categorical(x: int, *logits: Mpf) -> list[Number]:
    """Relative to the largest logit: max - l_x and log sum exp, never negative. That sum starts from 1, of which a last
    place is always lost. The derivative's terms are the softmax and 1; the softmax is exp of a rounded difference."""
    if x == -100:
        return [total(mpf(0))] * (1 + len(logits))
    if not 0 <= x < len(logits):
        return undefined(1 + len(logits))
    less, share, log_sum = shares(logits)
    slopes = [
        total(p, mpf(-1 if i == x else 0), rounding=spread(p, el, log_sum))
        for i, (p, el) in enumerate(zip(share, less, strict=True))
    ]
    return [total(-less[x], log_sum, rounding=mpf(1)), *slopes]


def multinomial(x: Sequence[Mpf], *logits: Mpf) -> list[Number]:
    """As `categorical`: x (max - l) and x log sum exp of every class; 0 log 0 is 0."""
    less, share, log_sum = shares(logits)
    count, size = sum(x, mpf(0)), sum(map(abs, x), mpf(0))
    parts = [-k * el if k or mp.isnan(el) else mpf(0) for k, el in zip(x, less, strict=True)]
    nll = total(*parts, count * log_sum, rounding=size)
    tails = min(MANY, max(mpf(1), size))
    slopes = [
        total(count * p, -k, rounding=size * (p + spread(p, el, log_sum)), tails=tails)
        for p, el, k in zip(share, less, x, strict=True)
    ]
    return [nll, *slopes]


def mixture(x: Sequence[Mpf], *params: Mpf) -> list[Number]:
    """log sum exp of the logits and log of the mixed mass, both relative to the largest logit. The posterior of each
    component is exp of a rounded difference, whose parts are the logits and that component's nll."""
    channels = len(x)
    k = len(params) // (3 if channels == 1 else 10)
    logits, rest = params[:k], params[k:]
    kinds = len(rest) // (channels * k)
    of = [
        [rest[(c * kinds + i) * k : (c * kinds + i + 1) * k] for i in range(kinds)] for c in range(channels)
    ]
    t = [2 * v - 1 for v in x]
    less, prior, log_sum = shares(logits)
    nlls, sizes, levels = [], [], []
    for j in range(k):
        level = []
        for c in range(channels):
            moves = []
            if c == 1:
                moves = [mp.tanh(of[0][2][j]) * t[0]]
            elif c == 2:
                moves = [mp.tanh(of[1][2][j]) * t[0], mp.tanh(of[2][2][j]) * t[1]]
            parts = [t[c], -of[c][0][j], *(-m for m in moves)]
            apart = sum(parts, mpf(0))
            level.append(logistic(t[c], apart, sum(map(abs, parts), mpf(0)), of[c][1][j]))
        levels.append(level)
        nlls.append(sum((n[0].value for n in level), mpf(0)))
        sizes.append(sum((n[0].scale for n in level), mpf(0)) + abs(less[j]))
    joint = [el - n for el, n in zip(less, nlls, strict=True)]
    largest = max(joint)
    each = [mp.exp(v - largest) for v in joint]
    posterior = [e / sum(each) for e in each]
    sizes = [s if r else mpf(0) for r, s in zip(posterior, sizes, strict=True)]  # 0 inf is 0 here
    mixed = sum(r * s for r, s in zip(posterior, sizes, strict=True))
    nll = total(log_sum, -(largest + mp.log(sum(each))), rounding=mixed + 1)
    loose = [r * (1 + s + mixed) for r, s in zip(posterior, sizes, strict=True)]
    of_logits = [
        Number(p - r, p + spread(p, el, log_sum) + wide)
        for p, r, el, wide in zip(prior, posterior, less, loose, strict=True)
    ]

    def weighed(j: int, by: Number, factor: Mpf = mpf(1)) -> Number:  # noqa: B008
        if not posterior[j]:
            return total(mpf(0))
        # An exp that was flushed may be multiplied by masses relative to the others', too.
        tails = min(MANY, max(by.tails, 256 * abs(by.value * factor)))
        return Number(posterior[j] * by.value * factor, loose[j] * by.scale * abs(factor), tails)

    slopes: list[Number] = []
    for c in range(channels):
        slopes += [weighed(j, levels[j][c][1]) for j in range(k)]
        slopes += [weighed(j, levels[j][c][2]) for j in range(k)]
        if channels == 3:  # the coefficients: green on red, blue on red, blue on green
            moved, mover = ((1, 0), (2, 0), (2, 1))[c]
            slopes += [
                weighed(j, levels[j][moved][1], t[mover] * mp.sech(of[c][2][j]) ** 2) for j in range(k)
            ]
    return [nll, *of_logits, *slopes]


# The latent


def clamped(logvar: Mpf, clamp: tuple[Mpf, Mpf] | None) -> tuple[Mpf, int]:
    """logvar within its bounds, and the derivative of that: 1 on the bounds."""
    if clamp is None:
        return logvar, 1
    low, high = clamp
    return min(max(logvar, low), high), int(low <= logvar <= high)


def kl(mu: Mpf, logvar: Mpf, *, clamp: tuple[Mpf, Mpf] | None = None) -> list[Number]:
    """mu² / 2 and (expm1(logvar) - logvar) / 2 are never negative."""
    lv, inside = clamped(logvar, clamp)
    nll = total(mu * mu / 2, (mp.expm1(lv) - lv) / 2)
    return [nll, total(mu), total(inside * mp.expm1(lv) / 2 if inside else mpf(0))]


def kl_with_prior(
    mu: Mpf, logvar: Mpf, prior_mu: Mpf, prior_logvar: Mpf, *, clamp: tuple[Mpf, Mpf] | None = None
) -> list[Number]:
    """(expm1(d) - d) / 2 and (mu - mu_p)² exp(-logvar_p) / 2 are never negative; d = logvar - logvar_p is rounded."""
    lv, inside = clamped(logvar, clamp)
    d, apart, precision = lv - prior_logvar, mu - prior_mu, mp.exp(-prior_logvar)
    square, growth = apart * apart * precision, mp.expm1(d)
    steep = abs(d) * mp.exp(d) / 2
    return [
        total((growth - d) / 2, square / 2, rounding=abs(d * growth) / 2),
        total(apart * precision),
        total(inside * growth / 2 if inside else mpf(0), rounding=inside * steep if inside else mpf(0)),
        total(-apart * precision),
        total(-growth / 2, -square / 2, rounding=steep),
    ]


def sample(mu: Mpf, logvar: Mpf, eps: Mpf, *, clamp: tuple[Mpf, Mpf] | None = None) -> list[Number]:
    """mu and std eps."""
    lv, inside = clamped(logvar, clamp)
    spread = mp.exp(lv / 2) * eps
    return [total(mu, spread), total(mpf(1)), total(spread / 2 if inside else mpf(0))]


def sample_and_kl(mu: Mpf, logvar: Mpf, eps: Mpf, *, clamp: tuple[Mpf, Mpf] | None = None) -> list[Number]:
    """z, kl, and the derivatives of their sum."""
    (z, *by_z), (k, *by_kl) = sample(mu, logvar, eps, clamp=clamp), kl(mu, logvar, clamp=clamp)
    both = [Number(a.value + b.value, a.scale + b.scale) for a, b in zip(by_z, by_kl, strict=True)]
    return [z, k, *both]


def log_weight(
    mu: Mpf,
    logvar: Mpf,
    eps: Mpf,
    prior_mu: Mpf = ZERO,
    prior_logvar: Mpf = ZERO,
    *,
    clamp: tuple[Mpf, Mpf] | None = None,
    path: bool = False,
    has_prior: bool = False,
) -> list[Number]:
    """h - u (u / 2 + eps) with h = (logvar - logvar_p) / 2, which is rounded, and u = (z - mu_p) / sigma_p - eps, which
    is (mu - mu_p) / sigma_p + expm1(h) eps up to |h| = 1/2. The derivative along the path has toward = eps - b t with
    b = u + eps and t = sigma / sigma_p: -u - b expm1(h) up to there."""
    lv, inside = clamped(logvar, clamp)
    h, inverse = (lv - prior_logvar) / 2, mp.exp(-prior_logvar / 2)
    scaled, t = (mu - prior_mu) * inverse, mp.exp(h)
    spread, near = t * eps, abs(h) <= HALF
    u, b = (scaled + mp.expm1(h) * eps if near else scaled + spread - eps), scaled + spread
    of_b = abs(scaled) + abs(spread) * (1 + abs(h))
    of_u = abs(scaled) + abs(mp.expm1(h) * eps) + abs(h * spread) if near else of_b + abs(eps)
    scale = abs(h) + u * u / 2 + abs(u * eps) + (abs(u) + abs(eps)) * of_u
    weight = Number(h + (eps * eps - b * b) / 2, scale)
    slope = Number(b * inverse, of_b * inverse)
    by_logvar = [HALF, -b * spread / 2]
    by_logvar_p = total(-HALF, b * b / 2, rounding=abs(b) * of_b)
    if not path:
        loose = of_b * abs(spread) * (1 + abs(h))
        of_q = [Number(-slope.value, slope.scale), total(*by_logvar, rounding=loose)]
    else:
        terms = (-u, -b * mp.expm1(h)) if near else (eps, -b * t)
        loose = (
            of_u + of_b * abs(mp.expm1(h)) + abs(h * b * t) if near else abs(eps) + of_b * t * (1 + abs(h))
        )
        toward, steep = sum(terms, ZERO), mp.exp(-lv / 2)
        of_q = [Number(toward * steep, loose * steep), Number(eps * toward / 2, abs(eps) * loose / 2)]
    if not inside:
        of_q[1] = total(ZERO)
    return [weight, *of_q, *([slope, by_logvar_p] if has_prior else [])]


# Densities of every pair


def pair(z: Sequence[Mpf], mean: Sequence[Mpf], logvar: Sequence[Mpf]) -> list[Number]:
    """Of each dim log N(z; mean, exp logvar), and what rounding acts on."""
    return [
        total(-mp.log(2 * mp.pi) / 2, -v / 2, -((a - m) ** 2) * mp.exp(-v) / 2)
        for a, m, v in zip(z, mean, logvar, strict=True)
    ]


def log_sum(terms: Sequence[Number]) -> tuple[Number, list[Mpf], list[Mpf]]:
    """log sum exp relative to the largest term; the shares, and what rounding acts on in each: exp of a difference."""
    largest = max(n.value for n in terms)
    each = [mp.exp(n.value - largest) for n in terms]
    share = [e / sum(each) for e in each]
    mixed = sum((r * n.scale for r, n in zip(share, terms, strict=True) if r), ZERO)
    loose = [r * (1 + n.scale + mixed) if r else ZERO for r, n in zip(share, terms, strict=True)]
    value = largest + mp.log(sum(each))
    return Number(value, abs(value) + mixed + 1), share, loose


def by_pair(z: Mpf, mean: Mpf, logvar: Mpf, factor: Mpf, loose: Mpf) -> list[Number]:
    """factor times the derivatives of log N(z; mean, exp logvar) by z, mean and logvar; 0 of a factor that is."""
    if not loose:
        return [total(ZERO)] * 3
    steep, square = (z - mean) * mp.exp(-logvar), (z - mean) ** 2 * mp.exp(-logvar)
    tails = min(MANY, max(mpf(1), abs(steep), square))
    wide = Number(-factor * steep, loose * abs(steep), tails)
    return [
        wide,
        wide._replace(value=-wide.value),
        Number(factor * (square - 1) / 2, loose * (square + 1) / 2, tails),
    ]


def mixture_log_prob(
    z: Sequence[Mpf], means: Sequence[Mpf], logvars: Sequence[Mpf], logits: Sequence[Mpf]
) -> list[Number]:
    """Of each component the logarithm of its weight and of its density, in the order of truth.log_sum."""
    dims, count = len(z), len(logits)
    of = [slice(k * dims, (k + 1) * dims) for k in range(count)]
    less, prior, log_all = shares(logits)
    terms = [
        _sum([*pair(z, means[at], logvars[at]), total(el, -log_all)]) for at, el in zip(of, less, strict=True)
    ]
    log_p, share, loose = log_sum(terms)
    slopes = [
        [by_pair(*each, share[k], loose[k]) for each in zip(z, means[at], logvars[at], strict=True)]
        for k, at in enumerate(of)
    ]
    by_logits = [  # share - prior (sum of shares)
        Number(r - p, p * (1 + sum(loose)) + spread(p, el, log_all) + wide)
        for r, p, el, wide in zip(share, prior, less, loose, strict=True)
    ]
    by_z = [_sum([slopes[k][d][0] for k in range(count)]) for d in range(dims)]
    return [log_p, *by_z, *(s[d][i] for i in (1, 2) for s in slopes for d in range(dims)), *by_logits]


def total_correlation(
    z: Sequence[Mpf], mu: Sequence[Mpf], logvar: Sequence[Mpf], *, log_weights: Sequence[Sequence[Mpf]]
) -> list[Number]:
    """log q(z_i) less the sum of log q_d(z_id), summed over a batch."""
    batch = len(log_weights)
    dims = len(z) // batch
    of = [slice(i * dims, (i + 1) * dims) for i in range(batch)]
    values, by = [], [[total(ZERO)] * len(z) for _ in range(3)]
    for i, row in enumerate(log_weights):
        pairs = [pair(z[of[i]], mu[at], logvar[at]) for at in of]
        weights = [total(w) for w in row]
        joint, share, loose = log_sum([_sum([*p, w]) for p, w in zip(pairs, weights, strict=True)])
        value, scale = joint.value, joint.scale
        for d in range(dims):
            alone, own, own_loose = log_sum([_sum([p[d], w]) for p, w in zip(pairs, weights, strict=True)])
            value, scale = value - alone.value, scale + alone.scale
            for j in range(batch):
                at, column = i * dims + d, j * dims + d
                parts = by_pair(z[at], mu[column], logvar[column], share[j] - own[j], loose[j] + own_loose[j])
                for grads, place, part in zip(by, (at, column, column), parts, strict=True):
                    grads[place] = _sum([grads[place], part])
        values.append(Number(value, scale))
    return [_sum(values), *(n for grads in by for n in grads)]


# Linear heads, of the layer's outputs. A link's result is a number of the arithmetic's dtype, beyond the largest inf.

NUDGE = mpf(2) ** -80


def _times(factor: Mpf, n: Number, rounding: Mpf, info: Any) -> Number:
    """factor n, where the factor is rounded, and either may be below the smallest normal number."""
    tails = min(mpf(2) ** 40, max(mpf(1), abs(n.value), abs(factor) * n.tails))
    if 0 < abs(n.value) < info.smallest_normal:
        rounding = max(rounding, 2 / mpf(info.eps))
    return Number(factor * n.value, abs(factor) * (n.scale + rounding * abs(n.value)), tails, n.defined)


def _sum(numbers: Sequence[Number]) -> Number:
    values, scales = (sum(v, mpf(0)) for v in zip(*(n[:2] for n in numbers), strict=True))
    return Number(values, scales, max(n.tails for n in numbers), all(n.defined for n in numbers))


def linear_counts(
    likelihood: str,
    info: Any,
    x: Sequence[Mpf],
    outputs: Sequence[Mpf],
    *,
    theta: Sequence[Mpf] = (),
    library: Mpf | None = None,
) -> list[Number]:
    """nll and its derivatives by the outputs, by theta where it is given, and by the library.

    The mean is exp of an output, or library times a softmax; theta may be exp of an output: both are rounded, and what
    that does to a result is measured, by moving them a little. `info` is torch.finfo of the arithmetic: a softmax or a
    slope below its smallest normal number has no relative accuracy, and a theta beyond its largest is held there.
    """
    function, size = globals()[likelihood], len(x)
    heads = [outputs[i : i + size] for i in range(0, len(outputs), size)]

    def link(o: Mpf) -> Mpf:
        return mp.exp(o) if mp.exp(o) <= info.max else INF

    rounded, share = [mpf(1)] * size, [mpf(1)] * size
    means = [link(o) for o in heads[0]]
    if library is not None:
        less, share, log_sum = shares(heads[0])
        means, rounded = [library * p for p in share], [1 + abs(el) + log_sum for el in less]
        lost = 2 / mpf(info.eps)
        rounded = [lost if 0 < p < info.smallest_normal else r for p, r in zip(share, rounded, strict=True)]
    linked = len(heads) > 1 and likelihood != "poisson" and not theta
    columns = [means, *([[link(o) for o in heads[1]]] if linked else [theta] if theta else [])]
    columns += [heads[-1]] if likelihood.startswith("zero") else []

    def moved(arguments: Sequence[Mpf], k: int) -> list[Mpf]:
        """The results' derivatives by the logarithm of an argument."""
        if not mp.isfinite(arguments[k + 1]):
            return [mpf(0)] * (1 + len(columns))
        nudged = [v * (1 + NUDGE) if i == k + 1 else v for i, v in enumerate(arguments)]
        both = zip(function(*nudged), function(*arguments), strict=True)
        return [(b.value - a.value) / NUDGE for b, a in both]

    rows = []
    for arguments, r in zip(zip(x, *columns, strict=True), rounded, strict=True):
        loose = [r * abs(v) for v in moved(arguments, 0)]
        if linked:
            loose = [a + abs(v) for a, v in zip(loose, moved(arguments, 1), strict=True)]
        rows.append([n._replace(scale=n.scale + s) for n, s in zip(function(*arguments), loose, strict=True)])
    nll, by_mean, *others = (list(column) for column in zip(*rows, strict=True))
    rates = [_times(m, n, r, info) for m, n, r in zip(means, by_mean, rounded, strict=True)]
    by_library = []
    if library is not None:
        every = _sum(rates)
        back = [_times(-p, every, r, info) for p, r in zip(share, rounded, strict=True)]
        rates = [_sum(pair) for pair in zip(rates, back, strict=True)]
        by_library = [_sum([_times(p, n, r, info) for p, n, r in zip(share, by_mean, rounded, strict=True)])]
    given = [] if not theta else others.pop(0)
    if linked:

        def by_log(i: int, t: Mpf, n: Number) -> Number:
            if mp.isfinite(t) or mp.isnan(t):
                return _times(t, n, mpf(1), info)
            # At the Poisson limit it is 0, as the derivative by theta falls with its square; held, it is on the way.
            arguments = [column[i] for column in (x, *columns)]
            held = function(*arguments[:2], mpf(info.max), *arguments[3:])[2].value * mpf(info.max)
            return Number(
                mpf(0), abs(held) / mpf(info.eps) if mp.isfinite(held) else mpf(0), defined=n.defined
            )

        others[0] = [by_log(i, t, n) for i, (t, n) in enumerate(zip(columns[1], others[0], strict=True))]
    return [_sum(nll), *rates, *(n for head in others for n in head), *given, *by_library]
