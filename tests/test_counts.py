"""Counts where products of float32 overflow, lgammas cancel, or a mean, a count or a theta is none.

The values are mpmath's, of the formula in the docstrings, 1e-8 included; conformance/ has the whole table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import vae_fast
from vae_fast import reference

INF, NAN = math.inf, math.nan
zinb = vae_fast.zero_inflated_negative_binomial_nll

# (x, mean, theta) of float32, as mpmath has them
NEGATIVE_BINOMIAL = {
    (1e4, 1e35, 1.0): 80.5904789937,
    (3.0, 2.0, 1e15): 1.71231792255,
    (0.0, 1e35, 0.5): 40.641813541,
    (1e30, 1e30, 2.0): 69.691258441,
    (7.0, 2.0, 3e38): 5.67313107215,
    (1e10, 2.0, 1.0): 4054651098.85,
    (1e6, 1e35, 1e4): 657709.977479,
    (0.0, 1e-6, 3e38): 1.00999999748e-6,
    (1e35, 1e35, 1e30): 46.9706454265,
    (0.5, 2.0, 1.5): 1.30919021282,
    (5.0, 0.0, 0.0): 23.4958545453,
    (3.0, 2.0, INF): 1.71231792255,  # Poisson's
    (0.0, 2.0, INF): 2.00000001,
    (1e4, INF, 1.0): INF,
    (INF, 2.0, 1.0): INF,
    (3.0, -0.5, 1.0): NAN,
    (0.0, -0.5, 1.0): NAN,
    (3.0, 2.0, -0.5): NAN,
    (0.0, 2.0, -0.5): NAN,
    (-0.5, 2.0, 1.0): NAN,
    (-1.0, 2.0, 1.0): NAN,
    (NAN, 2.0, 1.0): NAN,
    (3.0, NAN, 1.0): NAN,
    (0.0, 2.0, NAN): NAN,
}
POISSON = {
    (3.0, 2.0): 1.71231792255,
    (1e30, 1e-6): 8.18831142666e31,
    (1e35, 1e35): 41.2141776811,
    (1e38, 2e38): 3.0685280963e37,
    (0.25, 2.0): 1.72844137719,
    (0.0, 2.0): 2.00000001,
    (3.0, INF): INF,
    (1.0, -0.5): NAN,
    (0.0, -0.5): NAN,
    (-0.5, 2.0): NAN,
    (NAN, 2.0): NAN,
}


def columns(table: dict[tuple[float, ...], float]) -> list[Tensor]:
    """The inputs, each element a sample, and what is right."""
    return [torch.tensor(column) for column in (*zip(*table, strict=True), list(table.values()))]


def differentiated(nll: Callable[..., Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    leaves = [p.clone().requires_grad_() for p in params]
    value = nll(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def test_negative_binomial(backend: str) -> None:
    x, mean, theta, right = columns(NEGATIVE_BINOMIAL)
    nll, by_mean, by_theta = differentiated(
        lambda m, t: vae_fast.negative_binomial_nll(m, x, t), (mean, theta)
    )
    torch.testing.assert_close(nll, right, rtol=4e-7, atol=0, equal_nan=True)
    torch.testing.assert_close(
        vae_fast.negative_binomial_nll(mean.double(), x, theta).float(),
        nll,
        rtol=4e-7,
        atol=0,
        equal_nan=True,
    )
    mu, th = mean.double() + 1e-8, theta.double() + 1e-8
    finite = right.isfinite() & theta.isfinite()
    want = (1 - x / mu) * th / (th + mu)
    torch.testing.assert_close(by_mean[finite], want[finite].float(), rtol=1e-6, atol=1e-7)
    assert (by_theta[theta.isinf()] == 0).all()
    assert (by_mean[right.isnan()].isnan() & by_theta[right.isnan()].isnan()).all()


def test_poisson(backend: str) -> None:
    x, mean, right = columns(POISSON)
    nll, by_mean = differentiated(lambda m: vae_fast.poisson_nll(m, x), (mean,))
    torch.testing.assert_close(nll, right, rtol=4e-7, atol=0, equal_nan=True)
    want = torch.where(right.isnan(), NAN, 1 - x / (mean.double() + 1e-8)).float()
    torch.testing.assert_close(by_mean, want, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("x", [0.0, -0.0, 1e-9, -1e-9, 9.9e-9])
def test_what_counts_as_none(x: float, backend: str) -> None:
    """One rule for all: below 1e-8 there is no count, as scvi-tools has it."""
    mean, theta, logit = (torch.full((1,), v) for v in (2.0, 1.5, 0.7))
    target, none = torch.full((1,), x), torch.zeros(1)
    for nll, params in (
        (vae_fast.poisson_nll, (mean,)),
        (vae_fast.negative_binomial_nll, (mean, theta)),
        (zinb, (mean, theta, logit)),
    ):
        got, want = (
            differentiated(lambda m, *rest, f=nll, t=t: f(m, t, *rest), params) for t in (target, none)
        )
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(
        zinb(mean, target, theta, logit), torch.tensor([0.27275017]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("logit", [-1e30, -60.0, -2.0, 0.0, 3.0, 40.0])
@pytest.mark.parametrize("mean", [0.0, 1e-6, 2.0, 1e4, 1e35])
def test_zeros_that_may_have_dropped_out(mean: float, logit: float, backend: str) -> None:
    """Small where hardly anything drops out of next to nothing, and without overflow where much would."""
    mu, th = mean + 1e-8, 1.5 + 1e-8
    zero = th * math.log1p(mu / th)  # -log NB(0)
    kept = 1 / (1 + math.exp(logit)) if logit < 700 else 0.0
    distance = -kept * math.expm1(-zero)
    want = -math.log1p(-distance) if distance < 0.5 else min(zero, max(-logit, 0.0))
    if distance >= 0.5:
        want += math.log1p(math.exp(-abs(logit))) - math.log1p(math.exp(-abs(logit + zero)))
    nll = zinb(torch.tensor([mean]), torch.zeros(1), 1.5, torch.tensor([logit]))
    torch.testing.assert_close(nll, torch.tensor([want]), rtol=1e-6, atol=0)


def test_reference_differentiates_twice() -> None:
    """Its derivatives are written out, and differentiable themselves."""
    x = torch.tensor([0.0, 2.0, 7.0], dtype=torch.float64)
    params = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.7, 2.0, 3.0], [1.5, 9.0, 30.0])
    ]
    logit = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    for f, inputs in (
        (reference.poisson_nll, params[:1]),
        (reference.negative_binomial_nll, params),
        (reference.zero_inflated_negative_binomial_nll, [*params, logit]),
    ):
        assert torch.autograd.gradcheck(lambda m, *rest, f=f: f(m, x, *rest), inputs)
        assert torch.autograd.gradgradcheck(lambda m, *rest, f=f: f(m, x, *rest), inputs)


# Fused heads


def head(
    function: Callable[..., Tensor], bias: Sequence[float], x: Tensor, **options: Tensor
) -> list[Tensor]:
    """nll, and the gradients by hidden, weight, bias and the tensors given besides that learn."""
    batch, outputs = x.shape[0], len(bias)
    layer = [torch.ones(batch, 1), torch.zeros(outputs, 1), torch.tensor(bias)]
    learned = {k: v for k, v in options.items() if v.is_floating_point()}
    rest = {k: v for k, v in options.items() if k not in learned}

    def nll(hidden: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> Tensor:
        return function(hidden, weight, bias, x, **dict(zip(learned, others, strict=True)), **rest)

    return differentiated(nll, [*layer, *learned.values()])


HEADS: dict[str, tuple[str, list[float], list[list[float]], dict[str, list[Any]]]] = {
    "masked theta beyond float32, library": (
        "negative_binomial",
        [0.0, 0.0, 0.0, 100.0],
        [[1.0, 1.0]],
        {"library": [5.0], "mask": [[True, False]]},
    ),
    "masked theta beyond float32": (
        "zero_inflated_negative_binomial",
        [0.0, 0.0, 0.0, 100.0, 0.3, INF],
        [[1.0, 1.0]],
        {"mask": [[True, False]]},
    ),
    "library of 0": (
        "poisson",
        [0.0, 1.0],
        [[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]],
        {"library": [0.0, 1.0, 2.0]},
    ),
    "library of 0, negative binomial": (
        "negative_binomial",
        [0.0, 1.0, 0.5, 0.5],
        [[0.0, 0.0], [3.0, 1.0]],
        {"library": [0.0, 1e-30]},
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_finite(name: str, kernels: str) -> None:
    likelihood, bias, counts, given = HEADS[name]
    x, options = torch.tensor(counts), {k: torch.tensor(v) for k, v in given.items()}
    got = head(getattr(vae_fast, f"linear_{likelihood}_nll"), bias, x, **options)
    doubled = {k: v.double() if v.is_floating_point() else v for k, v in options.items()}
    torch.set_default_dtype(torch.float64)
    try:
        want = head(getattr(reference, f"linear_{likelihood}_nll"), bias, x.double(), **doubled)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-6)
        assert a.isfinite().all()


def test_library_of_0_learns(kernels: str) -> None:
    """The derivative by the library is 1 where nothing was counted, the share of the mean that it has."""
    *_, by_library = head(
        vae_fast.linear_poisson_nll, [0.0, 1.0], torch.zeros(3, 2), library=torch.tensor([0.0, 1.0, 2.0])
    )
    torch.testing.assert_close(by_library, torch.ones(3))


def test_head_with_a_theta_beyond_float32_is_poisson(backend: str) -> None:
    x = torch.tensor([[1.0, 3.0, 0.0]])
    nll, *grads = head(vae_fast.linear_negative_binomial_nll, [0.0, 1.0, 2.0, 89.0, 100.0, 1e30], x)
    want, *wanted = head(vae_fast.linear_poisson_nll, [0.0, 1.0, 2.0], x)
    torch.testing.assert_close(nll, want)
    torch.testing.assert_close(grads[2][:3], wanted[2], rtol=1e-5, atol=1e-7)
    assert (grads[2][3:] == 0).all() and grads[0].isfinite().all()
