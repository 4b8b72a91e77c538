"""Values and gradients, element by element, where parts of a formula leave the float range though the result may not.

The truth is mpmath's, of the rounded inputs. Each element is a sample of its own.
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


def kl_to_prior(m: mpf, lv: mpf, m_p: mpf, lv_p: mpf) -> list[Term]:
    d, square, slope = lv - lv_p, (m - m_p) ** 2 * exp(-lv_p) / 2, (m - m_p) * exp(-lv_p)
    up, moved = expm1(d) / 2, (abs(lv) + abs(lv_p)) * exp(d) / 2
    return [
        added(square, up, -d / 2, moved=moved),
        added(slope),
        added(up, moved=moved),
        added(-slope),
        added(-up, -square, moved=moved),
    ]


DIFFERENCES = [0.0, 1e-45, 1e-30, -1e-19, 1e-15, 1.0, -3.0, 1e10, 1e19, -1e30, MAX]
SIZES = [5.0, 87.0, 88.5, 100.0, 173.5, 174.5, 200.0, 350.0, 1e30, MAX]
SCALES = [0.0, *SIZES, *(-s for s in SIZES)]
LOGITS = [
    s * v for v in (0.0, TINY, 1e-9, 0.3, 1.99, 2.01, 17, 88, 100, 1e4, 1e30, MAX / 2, MAX) for s in (1, -1)
]
GREYS = [0.0, 1e-9, 0.25, 0.5, 1.0]
Case = tuple[Callable[..., list[Term]], Callable[..., Tensor], Sequence[Sequence[float]]]


def after_target(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, first, *others: function(first, x, *others)


CASES: dict[str, Case] = {  # formula, function and what its arguments are, target first
    "kl": (kl, vae_fast.kl_divergence, ([0.0, 1e-20, 3.0, 2e19, -MAX], SCALES)),
    "kl to a prior": (
        kl_to_prior,
        lambda m, lv, *p: vae_fast.kl_divergence(m, lv, prior=p),
        (DIFFERENCES[:-1], SCALES[::2], [0.0, 1e-15], SCALES),
    ),
    "gaussian": (gaussian, after_target(vae_fast.gaussian_nll), ([0.0], DIFFERENCES, SCALES)),
    "gaussian, from 1": (
        gaussian,
        after_target(vae_fast.gaussian_nll),
        ([1.0, 1e19], [0.0, 1.0, MAX, -1e19], SCALES),
    ),
    "unit_gaussian": (
        lambda x, m: gaussian(x, m, mpf(0))[:2],
        after_target(vae_fast.gaussian_nll),
        ([0.0, 1.0, 1e19], [*DIFFERENCES, 2.5e19]),
    ),
    "laplace": (
        laplace,
        after_target(vae_fast.laplace_nll),
        ([0.0], DIFFERENCES, [s / 2 for s in SCALES]),
    ),
    "bernoulli": (bernoulli, after_target(vae_fast.bernoulli_nll), (GREYS, LOGITS)),
    "bernoulli_probs": (
        bernoulli_probs,
        after_target(vae_fast.bernoulli_nll_from_probs),
        (GREYS, [0.0, 1e-45, 1e-42, 1e-38, 1e-30, 1e-13, 1e-7, 0.2, 0.5, 0.7, 0.99, 1 - 2**-24, 1.0]),
    ),
    "continuous_bernoulli": (
        continuous_bernoulli,
        after_target(vae_fast.continuous_bernoulli_nll),
        (GREYS, LOGITS),
    ),
    "discretized_logistic": (
        discretized_logistic,
        after_target(vae_fast.discretized_logistic_nll),
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
    _, function, _ = CASES[name]
    learned = [leaf(t) for t in inputs[len(inputs) - len(rows[0]) + 1 :]]
    value = function(*inputs[: len(inputs) - len(learned)], *learned)
    grads = torch.autograd.grad(value.sum(), learned)
    for i, (got, row) in enumerate(zip((value, *grads), zip(*rows, strict=True), strict=True)):
        assert_right(f"{name}: {f'gradient {i}' if i else 'value'}", got, row, *inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(backend: str, name: str, dtype: torch.dtype) -> None:
    check(name, dtype)


@pytest.mark.parametrize("name", CASES)
def test_in_float64(name: str) -> None:
    """Which the reference serves."""
    check(name, torch.float64)


def test_second_derivatives() -> None:
    """Of the reference, on both sides of where it changes its form."""
    sizes = leaf(torch.tensor([-699.0, -600.0, -3.0, 0.0, 1.5, 9.9, 10.1], dtype=torch.float64))
    d = leaf(torch.tensor([1e-200, 1e-150, 0.3, -1.0, 2.0, 1.0, 3.0], dtype=torch.float64))
    for function in (vae_fast.gaussian_nll, vae_fast.laplace_nll):
        by_d, by_size = torch.autograd.grad(
            function(d, torch.zeros_like(d), sizes).sum(), (d, sizes), create_graph=True
        )
        twice, mixed = torch.autograd.grad(by_size.sum(), (sizes, d), retain_graph=True)
        power = 2 if function is vae_fast.gaussian_nll else 1
        want = d.abs() * torch.exp(-sizes / power)
        torch.testing.assert_close(twice, want**power / power)
        torch.testing.assert_close(mixed, -by_d)
    logits = leaf(torch.tensor([-30.0, -2.0, -1.99, 0.0, 1e-3, 1.99, 2.01, 30.0], dtype=torch.float64))
    inside = (logits.detach().abs() < 10).nonzero()[:, 0]
    x = torch.full_like(logits, 0.3)
    for check_of, inputs in (
        (lambda v: vae_fast.continuous_bernoulli_nll(v, x[inside]), logits[inside]),
        (lambda v: vae_fast.discretized_logistic_nll(v, x[inside], v), logits[inside]),
        (lambda v: vae_fast.kl_divergence(v, v, prior=(2 * v, v + 1)), logits[inside]),
        (lambda v: vae_fast.bernoulli_nll_from_probs(v, x[inside]), torch.sigmoid(logits[inside])),
    ):
        assert torch.autograd.gradgradcheck(check_of, leaf(inputs))
