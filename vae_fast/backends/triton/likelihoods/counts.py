"""What the likelihoods of counts share: means and inverse dispersions, as in scvi-tools.

The textbook writes them with lgamma, and at theta = 1e8 the difference of two lgamma leaves no digit of float32. Here
Stirling's formula is taken out of each lgamma by hand, its large terms are combined on paper (Loader, "Fast and
accurate computation of binomial probabilities", 2000), and what is left to compute are terms that cancel little:

    log(X / Y) = 2 w + excess,  w = (X - Y) / (X + Y)
    lgamma(y) = (y - 1/2) log y - y + log(2 pi) / 2 + stirling(y)
    digamma(y) = log y - 1 / (2 y) + digamma_rest(y)

Most tiles are plain: counts of 0 or from 1, and no number that is negative or above 2^40. One comparison for the whole
tile finds out, and a plain one takes the form that needs no care: half the instructions, and half of MUFU's. NaN needs
none, so that it changes no bit of its neighbours.
Others are computed in quarters, one after the other in a loop that is not unrolled, so that the rare case does not say
how many registers a thread has: 144 of a negative binomial with eight elements a thread otherwise.

Always to float32 accuracy: the parameters of 16 bits are exact numbers too, and counts are large.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ....likelihoods import counts as spec
from ..formulas import divide, log
from ..launch import INTERPRETED

EPS = tl.constexpr(spec.EPS)
NOTHING = tl.constexpr(spec.NOTHING)
LARGEST = tl.constexpr(3.4028234663852886e38)
# In the interpreter, where a loop takes four times as long, only a test has tiles in quarters.
QUARTERS = tl.constexpr(not INTERPRETED)


@triton.jit
def _bits(v):
    """Ordered as the numbers are from 0 to inf; negative ones are larger, and NaN is 0."""
    return tl.where(v == v, v, 0.0).to(tl.uint32, bitcast=True)


@triton.jit
def is_plain(params, x):
    """Whether all x of a tile are none or from 1 to 2^40, and its means and thetas from 0 to 2^40."""
    # The factor takes NOTHING, and no number below it, beyond 2^40.
    bits = _bits(tl.where(x < 1.0, tl.abs(x) * 1.0995117157369302e20, x))
    for i in tl.static_range(len(params)):
        bits = tl.maximum(bits, _bits(params[i]))
    return tl.max(bits) <= 0x53800000  # 2^40


@triton.jit
def quarters(v):
    """Every fourth column of a tile, from the first, second, third and fourth on."""
    a, b = tl.split(tl.reshape(v, (v.shape[0], v.shape[1] // 4, 2, 2)))
    first, third = tl.split(a)
    second, fourth = tl.split(b)
    return first, second, third, fourth


@triton.jit
def whole(parts):
    """The tile of its quarters."""
    first, second, third, fourth = parts
    v = tl.join(tl.join(first, third), tl.join(second, fourth))
    return tl.reshape(v, (first.shape[0], 4 * first.shape[1]))


@triton.jit
def pick(i, parts):
    first, second, third, fourth = parts
    return tl.where(i == 0, first, tl.where(i == 1, second, tl.where(i == 2, third, fourth)))


@triton.jit
def put(i, parts, v):
    first, second, third, fourth = parts
    first = tl.where(i == 0, v, first)
    second = tl.where(i == 1, v, second)
    third = tl.where(i == 2, v, third)
    return first, second, third, tl.where(i == 3, v, fourth)


@triton.jit
def _log_excess(z):
    # fit_polynomials.py log_excess: (2·atanh(w) - 2w)/w³ of w², w <= 1/3; 3.0e-08 relative
    series = 0.2859250009059906 + z * (0.21704532206058502 + z * 0.2323356419801712)
    return 0.6666666865348816 + z * (0.3999970257282257 + z * series)


@triton.jit
def log1p_minus(v, w, ratio):
    """log(1 + v) - v where it is near 0, else log(1 + v), and whether it is near, for w = v / (2 + v) and
    ratio = 1 + v."""
    near = tl.abs(w) < 1 / 3
    z = w * w
    return tl.where(near, w * (z * _log_excess(z) - v), log(ratio)), near


@triton.jit
def in_domain(v):
    """v, at most the largest number, or NaN where it is negative."""
    return tl.where(v >= 0, tl.minimum(v, LARGEST), float("nan"))


@triton.jit
def growth_of_infinite(mean, x):
    """What is added to a result that grows without bound with the mean and with x, and has no limit in both."""
    of_mean = tl.where(mean > LARGEST, float("inf"), 0.0)
    return tl.where(x > LARGEST, float("inf") - of_mean, of_mean)


@triton.jit
def unit_of(total):
    """The unit in which numbers of this sum are computed, and 1 / unit: no product of two of them leaves float32."""
    large = total > 4.611686018427388e18  # 2^62
    return tl.where(large, 7.378697629483821e19, 1.0), tl.where(large, 1.3552527156068805e-20, 1.0)  # 2^66


@triton.jit
def excess(a, b, ratio, w):
    """log(ratio) - 2 w, for ratio = a / b, which may leave float32, and w = (ratio - 1) / (ratio + 1)."""
    z = w * w
    near = w * z * _log_excess(z)
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
def stirling_from_1(inverse):
    """stirling(y) of y >= 1, given 1 / y."""
    return inverse * _stirling_series(inverse * inverse)


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
    series = digamma_rest_from_1(w)
    return tl.where(small, series - log(y * w) - 0.5 * (inverse + w), series)


@triton.jit
def digamma_rest_from_1(inverse):
    """digamma_rest(y) of y >= 1, given 1 / y."""
    z = inverse * inverse
    # fit_polynomials.py digamma_square: (log(y) - 1/(2y) - digamma(y))·y² of 1/y², y >= 1; 6.0e-07 relative
    series = 0.002629471244290471 + z * (-0.0014508964959532022 + z * 0.00035893978201784194)
    series = 0.0038519760128110647 + z * (-0.003179398598149419 + z * series)
    return -z * (0.08333328366279602 + z * (-0.008327670395374298 + z * series))
