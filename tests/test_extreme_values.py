"""Values and gradients, element by element, where parts of a formula leave the float range though the result may not.

The truth is mpmath's, of the very inputs. Each element is a sample of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from mpmath import exp, expm1, log, log1p, mp, mpf
from torch import Tensor

import vae_fast
from likelihoods import leaf
from test_likelihood_extremes import grid

MAX, TINY = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
UNITS = 4  # in the last place, of the result or, where terms cancel, of the sum of their absolute values
Term = tuple[mpf, mpf]  # a result, and the sum of the absolute terms


def softplus(z: mpf) -> mpf:
    return max(z, mpf(0)) + log1p(exp(-abs(z)))


def sigmoid(z: mpf) -> mpf:
    return 1 / (1 + exp(-z)) if z > 0 else exp(z) / (1 + exp(z))


def added(*terms: mpf, moved: float | mpf = 0) -> Term:
    """A sum, and what rounding acts on: `moved` is what a relative error of 1 in an exponent does to it."""
    return sum(terms, mpf(0)), sum(map(abs, terms), abs(moved))


def gaussian(x: mpf, m: mpf, lv: mpf) -> list[Term]:
    square, slope = (m - x) ** 2 * exp(-lv) / 2, (m - x) * exp(-lv)
    return [added(log(2 * mp.pi) / 2, lv / 2, square), added(slope), added(mpf("0.5"), -square)]


def laplace(x: mpf, m: mpf, s: mpf) -> list[Term]:
    distance = abs(m - x) * exp(-s)
    return [added(log(2), s, distance), added(mp.sign(m - x) * exp(-s)), added(mpf(1), -distance)]


def bernoulli(x: mpf, el: mpf) -> list[Term]:
    return [
        added(max(el, mpf(0)), -x * el, log1p(exp(-abs(el)))),
        added((1 - x) * sigmoid(el), -x * sigmoid(-el)),
    ]


def bernoulli_probs(x: mpf, p: mpf) -> list[Term]:
    log_p, log_q = (max(log(v), mpf(-100)) if v else mpf(-100) for v in (p, 1 - p))
    return [added(-x * log_p, -(1 - x) * log_q), added((p - x) / max(p * (1 - p), mpf("1e-12")))]


def continuous_bernoulli(x: mpf, el: mpf) -> list[Term]:
    a = abs(el)
    if a < 1e-9:
        return [added((0.5 - x) * el, el**2 / 24), added(0.5 - x, el / 12)]
    log_c, from_end = log(a / -expm1(-a)), 1 / a - 1 / expm1(a)
    mean = (from_end, -x) if el < 0 else (mpf(1), -from_end, -x)
    return [added(max(el, mpf(0)), -x * el, -log_c), added(*mean)]


def discretized_logistic(x: mpf, m: mpf, s: mpf) -> list[Term]:
    inverse, h = exp(-max(s, mpf(-7))), mpf(1) / 255
    b, a, w = ((2 * x - 1 - m + h) * inverse, (2 * x - 1 - m - h) * inverse, 2 * h * inverse)
    below, above = x > 0.0005, x < 0.9995  # whether the level has a lower and an upper edge
    nll = [softplus(-b) * above, softplus(a) * below, -log(-expm1(-w)) * (below and above)]
    of_b, of_a = sigmoid(-b) * above, sigmoid(a) * below
    by_s = (b * of_b, -a * of_a, w / expm1(w) * (below and above))
    far = (abs(2 * x - 1) + abs(m) + h) * inverse
    slope = of_b * sigmoid(b) + of_a * sigmoid(-a)
    return [
        added(*nll, moved=far * (of_b + of_a)),
        added(inverse * of_b, -inverse * of_a, moved=inverse * far * slope),
        added(*(v * (s >= -7) for v in by_s), moved=far * (of_b + of_a + far * slope) * (s >= -7)),
    ]


def kl(m: mpf, lv: mpf) -> list[Term]:
    return [added(m * m / 2, expm1(lv) / 2, -lv / 2), added(m), added(expm1(lv) / 2)]


def kl_to_prior(m: mpf, lv: mpf, mp_: mpf, lvp: mpf) -> list[Term]:
    d, square, slope = lv - lvp, (m - mp_) ** 2 * exp(-lvp) / 2, (m - mp_) * exp(-lvp)
    up = expm1(d) / 2
    return [added(square, up, -d / 2), added(slope), added(up), added(-slope), added(-up, -square)]


def categorical(k: int, *logits: mpf) -> list[Term]:
    top = max(logits)
    total = sum(exp(v - top) for v in logits)
    shares = [exp(v - top) / total for v in logits]
    return [added(top - logits[k], log(total)), *(added(p, mpf(-(i == k))) for i, p in enumerate(shares))]


def by_sample(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda first, x, *others: function(first, x, *others)


DIFFERENCES = [0.0, 1e-45, 1e-30, -1e-19, 1e-15, 1.0, -3.0, 1e10, 1e19, -1e30, MAX]
SCALES = [
    -1e30,
    -350,
    -200,
    -174.5,
    -173.5,
    -100,
    -88.5,
    -87,
    -5,
    0,
    5,
    87,
    88.5,
    100,
    173.5,
    174.5,
    200,
    350,
    1e30,
    -MAX,
    MAX,
]
LOGITS = [
    s * v for v in (0.0, TINY, 1e-9, 0.3, 1.99, 2.01, 17, 88, 100, 1e4, 1e30, MAX / 2, MAX) for s in (1, -1)
]
GREYS = [0.0, 1e-9, 0.25, 0.5, 1.0]
CASES: dict[str, tuple[Callable[..., list[Term]], Callable[..., Tensor], Sequence[Sequence[float]]]] = {
    "gaussian": (gaussian, vae_fast.gaussian_nll, ([0.0], DIFFERENCES, SCALES)),
    "gaussian, from 1": (gaussian, vae_fast.gaussian_nll, ([1.0, 1e19], [0.0, 1.0, MAX, -1e19], SCALES)),
    "laplace": (
        laplace,
        vae_fast.laplace_nll,
        ([0.0], DIFFERENCES, [s / 2 for s in SCALES]),
    ),
    "bernoulli": (bernoulli, vae_fast.bernoulli_nll, (GREYS, LOGITS)),
    "bernoulli_probs": (
        bernoulli_probs,
        vae_fast.bernoulli_nll_from_probs,
        (GREYS, [0.0, 1e-45, 1e-42, 1e-38, 1e-30, 1e-13, 1e-7, 0.2, 0.5, 0.7, 0.99, 1 - 2**-24, 1.0]),
    ),
    "continuous_bernoulli": (continuous_bernoulli, vae_fast.continuous_bernoulli_nll, (GREYS, LOGITS)),
    "discretized_logistic": (
        discretized_logistic,
        vae_fast.discretized_logistic_nll,
        (
            [0.0, 1 / 255, 128 / 255, 1.0],
            [-MAX, -1e36, -1e30, -40.0, -1.0, 0.0, 0.9, 1e5, MAX],
            [-MAX, -90, -7, -6.9, 0, 9.9, 10.1, 40, 79, 85, 88, 100, 150, 200, 1e5, MAX],
        ),
    ),
}


@functools.cache
def truth(name: str, dtype: torch.dtype) -> tuple[list[Tensor], list[list[Term]]]:
    """The inputs in dtype, and by element the results: first the nll, then the derivatives by each parameter."""
    formula, _, axes = CASES[name]
    with torch.device("cpu"):
        inputs = [t.to(dtype) for t in grid(*axes)]
    if (
        dtype != torch.float32
    ):  # what rounds to infinity, or to subnormal numbers, which Triton's interpreter misreads
        normal = [v.isfinite() & ((v == 0) | (v.abs() >= TINY)) for v in inputs]
        inputs = [t[torch.stack(normal).all(0)] for t in inputs]
    with mp.workdps(60):
        rows = [formula(*map(mpf, row)) for row in zip(*(t.tolist() for t in inputs), strict=True)]
    return inputs, rows


def assert_right(what: str, got: Tensor, row: Sequence[Term], *inputs: Tensor) -> None:
    finfo = torch.finfo(got.dtype)
    for i, (g, (want, scale)) in enumerate(zip(got.detach().double().tolist(), row, strict=True)):
        with mp.workdps(60):
            allowed = UNITS * finfo.eps * scale + mpf(finfo.tiny)
            right = (
                (g > 0) == (want > 0) and abs(want) > finfo.max * (1 - UNITS * finfo.eps)
                if math.isinf(g)
                else not math.isnan(g) and abs(mpf(g) - want) <= allowed
            )
        assert right, (
            f"{what} is {g:.9g}, not {mp.nstr(want, 9)}, at {[t[i].item() for t in inputs]}, "
            f"{mp.nstr(abs(mpf(g) - want) / (finfo.eps * scale + finfo.tiny), 4) if math.isfinite(g) else ''} units"
        )


def check(name: str, dtype: torch.dtype) -> None:
    inputs, rows = truth(name, dtype)
    x, *params = inputs
    learned = [leaf(p) for p in params]
    nll = CASES[name][1](learned[0], x, *learned[1:])
    grads = torch.autograd.grad(nll.sum(), learned)
    for i, (got, row) in enumerate(zip((nll, *grads), zip(*rows, strict=True), strict=True)):
        assert_right(f"{name}: {f'gradient {i}' if i else 'nll'}", got, row, *inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_likelihoods(backend: str, name: str, dtype: torch.dtype) -> None:
    check(name, dtype)
