"""Each likelihood where float32 has few digits left: tails, limits, cancellation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import vae_fast
from likelihoods import LIKELIHOODS, clamp, function, leaf
from vae_fast.likelihoods import ELEMENTWISE

EPS = torch.finfo(torch.float32).eps


def exactly(
    name: str, x: Tensor, params: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """nll and gradients in float64, and for each what a relative error of 1 in one of its inputs does to it."""
    target, *inputs = (leaf(t.double()) for t in (x, *params))
    nll = ELEMENTWISE[name].nll(inputs[0], target, *inputs[1:])

    def moves(value: Tensor) -> Tensor:
        slopes = torch.autograd.grad(value.sum(), (target, *inputs), retain_graph=True, allow_unused=True)
        pairs = zip((target, *inputs), slopes, strict=True)
        return sum((t * s).abs() for t, s in pairs if s is not None).detach() + value.detach().abs()

    grads = torch.autograd.grad(nll.sum(), inputs, create_graph=True)
    nll_scale, *scales = (moves(v) for v in (nll, *grads))
    return nll.detach(), nll_scale, [g.detach() for g in grads], scales


# Added to what a gradient's rounding acts on, for each parameter: a difference of two sigmoids, by its scale; and what
# float64, that is the truth, knows of a difference of two digammas or of a sigmoid near 0.
FLOORS = {
    "discretized_logistic": lambda m, s: (torch.exp(-clamp(s, -7)), 1.0),
    "negative_binomial": lambda m, theta: (0.0, 1e-8 + 1e-9 / theta),
    "zero_inflated_negative_binomial": lambda m, theta, p: (
        1e-10,
        1e-8 + 1e-9 / theta,
        torch.sigmoid(-p) + 1e-8,
    ),
}


def check(name: str, x: Tensor, *params: Tensor, units: float = 16) -> None:
    """Every element a sample of its own: backward stable, that is as good as if the inputs had moved by a few units in
    their last place."""
    floors = FLOORS.get(name, lambda *p: (0.0,) * len(p))(*params)
    inputs = [leaf(p) for p in params]
    nll = function(name)(inputs[0], x, *inputs[1:])
    grads = torch.autograd.grad(nll.sum(), inputs)
    truth, scale, truths, scales = exactly(name, x, params)
    names = ("nll", *(f"gradient {i}" for i in range(len(grads))))
    rows = zip(names, (nll.detach(), *grads), (truth, *truths), (scale, *scales), (0.1, *floors), strict=True)
    for what, got, want, by, floor in rows:
        error, allowed = (got.double() - want).abs(), units * EPS * (by + floor) + 1e-36
        worst = torch.argmax(torch.where(error.isnan(), math.inf, error / allowed))
        assert error[worst] <= allowed[worst], (
            f"{name}: {what} is {got[worst].item():.9g}, not {want[worst].item():.9g}, allowed {allowed[worst]:.3g}, "
            f"at x {x[worst].item():.9g}, parameters {[p[worst].item() for p in params]}"
        )


def grid(*axes: Sequence[float]) -> list[Tensor]:
    return [t.flatten() for t in torch.meshgrid(*(torch.tensor(a) for a in axes), indexing="ij")]


LOGITS = [0.0, *(s * v for v in (1e-9, 1e-4, 0.01, 0.1, 0.5, 1, 2, 5, 17, 30, 88, 100, 300) for s in (-1, 1))]
GREYS = [0.0, 1e-3, 0.25, 0.5, 0.75, 1.0]
LEVELS = [k / 255 for k in (0, 1, 2, 64, 128, 200, 253, 254, 255)]
COUNTS = [0.0, 1.0, 2.0, 7.0, 30.0, 255.0, 4000.0, 1e5]
MEANS = [0.0, 1e-6, 0.01, 0.5, 1.0, 6.5, 31.0, 260.0, 3900.0, 1e5]
THETAS = [1e-4, 0.01, 0.5, 1.0, 20.0, 1e3, 1e4, 1e6, 1e8]
CASES = {
    "bernoulli": (GREYS, LOGITS),
    "bernoulli_probs": (GREYS, [1e-9, 1e-3, 0.3, 0.5, 0.8, 0.999, 1 - 2.0**-23]),
    "continuous_bernoulli": (GREYS, LOGITS),
    "gaussian": ([-30.0, 0.0, 0.3, 1.0], [-5.0, 0.0, 0.3, 1e4], [-30.0, -5.0, 0.0, 5.0, 30.0]),
    "unit_gaussian": ([-30.0, 0.0, 0.3, 1.0], [-5.0, 0.0, 0.3, 1e4]),
    "laplace": ([-30.0, 0.0, 0.3, 1.0], [-5.0, 0.0, 0.3, 1e4], [-30.0, -5.0, 0.0, 5.0, 30.0]),
    "discretized_logistic": (
        LEVELS,
        [-50.0, -2.0, -1.0, -0.3, 0.0, 0.003, 0.9, 1.0, 1.5, 50.0],
        [-90.0, -8.0, -7.0, -6.9, -4.0, -1.0, 0.0, 3.0, 20.0],
    ),
    "poisson": (COUNTS, MEANS),
    "negative_binomial": (COUNTS, MEANS, THETAS),
    "zero_inflated_negative_binomial": (COUNTS[:6], MEANS[:8], THETAS, [-50.0, -3.0, 0.0, 3.0, 50.0]),
}


@pytest.mark.parametrize("name", CASES)
def test_extremes(backend: str, name: str) -> None:
    """Bernoulli at logits of 100, Gaussian at log-variances of 30, the discretized logistic's tails and bound, counts
    far from their mean, dispersions up to the Poisson limit."""
    check(name, *grid(*CASES[name]))


def numbers(low: float, high: float) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(low, high, width=32), min_size=30, max_size=30)


def powers(low: float, high: float) -> st.SearchStrategy[list[float]]:
    return numbers(low, high).map(lambda exponents: [10.0**e for e in exponents])


RANGES = {
    "bernoulli": (numbers(0, 1), numbers(-120, 120)),
    "continuous_bernoulli": (numbers(0, 1), numbers(-120, 120)),
    "gaussian": (numbers(-10, 10), numbers(-10, 10), numbers(-30, 30)),
    "laplace": (numbers(-10, 10), numbers(-10, 10), numbers(-30, 30)),
    "discretized_logistic": (
        st.lists(st.sampled_from(LEVELS), min_size=30, max_size=30),
        numbers(-3, 3),
        numbers(-9, 9),
    ),
    "poisson": (powers(0, 6), powers(-8, 6)),
    "negative_binomial": (powers(0, 5), powers(-8, 5), powers(-4, 8)),
    "zero_inflated_negative_binomial": (powers(-0.5, 4), powers(-8, 4), powers(-4, 8), numbers(-50, 50)),
}


@pytest.mark.parametrize("name", RANGES)
def test_anywhere(backend: str, name: str) -> None:
    @settings(max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(st.tuples(*RANGES[name]))
    def run(values: tuple[list[float], ...]) -> None:
        x, *params = map(torch.tensor, values)
        check(name, x.floor() if LIKELIHOODS[name].counts else x, *params)

    run()


@pytest.mark.parametrize("theta", [1e4, 1e6, 1e8])
def test_negative_binomial_towards_poisson(backend: str, theta: float) -> None:
    """Within 1e-5 of float64 where the lgammas of the textbook leave float32 no digit."""
    mean = torch.tensor([0.1, 1.0, 3.0, 12.0, 80.0, 700.0])
    for away in (0.5, 1.0, 1.6):
        x = (mean * away).round()
        nll = vae_fast.negative_binomial_nll(mean, x, theta)
        truth = vae_fast.negative_binomial_nll(mean.double(), x, theta)
        torch.testing.assert_close(nll.double(), truth, rtol=1e-5, atol=0)
        if theta == 1e8:
            torch.testing.assert_close(nll, vae_fast.poisson_nll(mean, x), rtol=1e-5, atol=0)


def test_continuous_bernoulli_around_one_half(backend: str) -> None:
    """At probability 1/2 the density is 1, the mean 1/2 and its slope 1/12: no hole around 0."""
    logits = leaf(torch.linspace(-0.3, 0.3, 2001)[:, None])
    for x in (0.0, 0.5, 1.0):
        nll = vae_fast.continuous_bernoulli_nll(logits, torch.full_like(logits, x))
        el = logits.detach().double()
        density = el**2 / 24 - el**4 / 2880 + el**6 / 181440 - el**8 / 9676800
        torch.testing.assert_close(nll.double()[:, None], (0.5 - x) * el + density, rtol=1e-6, atol=3e-8)
        (grad,) = torch.autograd.grad(nll.sum(), logits)
        mean = 0.5 + el / 12 - el**3 / 720 + el**5 / 30240 - el**7 / 1209600
        torch.testing.assert_close(grad.double(), mean - x, rtol=1e-6, atol=1e-7)


def test_the_bound_on_the_log_scale(backend: str) -> None:
    """As torch.clamp: the gradient is the whole one on the bound of -7, and 0 below."""
    s = leaf(torch.tensor([-7.0, -7.0001, -50.0, -6.9999]))
    nll = vae_fast.discretized_logistic_nll(torch.full((4,), -0.2), torch.full((4,), 100 / 255), s)
    (grad,) = torch.autograd.grad(nll.sum(), s)
    assert (grad != 0).tolist() == [True, False, False, True]
    torch.testing.assert_close(nll[:3], nll[:1].expand(3))
    torch.testing.assert_close(grad[0], grad[3], rtol=1e-2, atol=0)


def test_wide_and_narrow_distributions(backend: str) -> None:
    """Where exp(-logvar) leaves float32 though the likelihood does not; infinite where that is too large, never less
    than nothing."""
    inf = math.inf
    rows = [  # x - mean, logvar, nll, and its derivatives by mean and logvar
        (1e-15, -88.5, 1.3615439e8 - 43.331061, -2.7230878e23, 0.5 - 1.3615439e8),
        (1.0, -100.0, inf, -inf, -inf),
        (1e19, 100.0, 50.918940, -3.7200759e-25, 0.49999814),
        (0.0, -200.0, -99.081061, 0.0, 0.5),
        (0.0, -1e30, -5e29, 0.0, 0.5),
        (-1e30, 200.0, 100.91894, 1.3838965e-57, 0.5),
        (1e-30, -200.0, 3.6129868e26, -7.2259737e56, -3.6129868e26),
        (0.0, -inf, math.nan, math.nan, math.nan),
        (1.0, -inf, math.nan, -inf, -inf),
        (1.0, inf, inf, 0.0, 0.5),
    ]
    x, logvar, *want = map(torch.tensor, zip(*rows, strict=True))
    mean, logvar = leaf(torch.zeros_like(x)), leaf(logvar)
    nll = vae_fast.gaussian_nll(mean, x, logvar)
    for got, wanted in zip((nll, *torch.autograd.grad(nll.sum(), (mean, logvar))), want, strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=2e-6, atol=1e-37, equal_nan=True)
    rows = [  # the same of a Laplace distribution
        (1e-15, -100.0, 2.6881171e28, -inf, -2.6881171e28),
        (0.0, -100.0, -99.306853, 0.0, 1.0),
        (1e38, 100.0, 100.69315, -3.7200759e-44, 0.99999628),
        (1e38, 88.0, 1e38 * math.exp(-88) + 88.693147, -6.0546018e-39, 1 - 1e38 * math.exp(-88)),
        (-1.0, -88.5, 2.7230878e38, 2.7230878e38, -2.7230878e38),
        (0.0, -inf, math.nan, math.nan, math.nan),
        (1.0, -inf, math.nan, -inf, -inf),
        (1.0, inf, inf, 0.0, 1.0),
    ]
    x, scale, *want = map(torch.tensor, zip(*rows, strict=True))
    location, scale = leaf(torch.zeros_like(x)), leaf(scale)
    nll = vae_fast.laplace_nll(location, x, scale)
    for got, wanted in zip((nll, *torch.autograd.grad(nll.sum(), (location, scale))), want, strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=2e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_probabilities_as_in_torch(backend: str, dtype: torch.dtype) -> None:
    """Values and gradients of F.binary_cross_entropy, at 0 and 1 too; NaN where it raises."""
    p = [0.0, 1.0, 1e-12, 1e-7, 0.2, 0.5, 0.77, 1 - 1e-3, 1 - 1e-7, 1 - 1e-13]
    probs, x = (t.to(dtype) for t in grid(p, [0.0, 1.0, 0.5, 1e-3]))
    probs, wide = leaf(probs), torch.float64 if dtype == torch.float64 else torch.float32
    nll = vae_fast.bernoulli_nll_from_probs(probs, x)
    own = leaf(probs.to(wide))
    want = torch.nn.functional.binary_cross_entropy(own, x.to(wide), reduction="none")
    torch.testing.assert_close(nll.detach(), want.detach(), rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(nll.sum(), probs)
    (slope,) = torch.autograd.grad(want.sum(), own)
    torch.testing.assert_close(grad, slope.to(dtype), rtol=1e-6 if wide is dtype else 8e-3, atol=0)
    assert nll[0] == 0 and nll[1] == 100
    bad = torch.tensor([-0.1, 1.1, math.nan, math.inf, 0.5, 0.5, 0.5], dtype=dtype)
    wrong = torch.tensor([0.5, 0.5, 0.5, 0.5, -0.1, 255.0, math.nan], dtype=dtype)
    bad = leaf(bad)
    nll = vae_fast.bernoulli_nll_from_probs(bad, wrong)
    assert nll.isnan().all() and torch.autograd.grad(nll.sum(), bad)[0].isnan().all()
    mask = torch.zeros(7, dtype=torch.bool)
    nll = vae_fast.bernoulli_nll_from_probs(bad, wrong, mask=mask)
    assert not nll.any() and not torch.autograd.grad(nll.sum(), bad)[0].any()
