"""Every fused head: what it computes, written out, and data for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vae_fast
from vae_fast import reference

BATCH, HIDDEN, FEATURES = 11, 3, 6


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def uniform(*shape: int, seed: int = 7) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


GREY = uniform(BATCH, FEATURES)
COUNTS = torch.poisson(4 * uniform(BATCH, FEATURES), generator=torch.Generator().manual_seed(8))
THETA, LIBRARY = uniform(FEATURES, seed=9) + 0.5, 30 * uniform(BATCH, seed=10) + 1
WORDS = torch.tensor([[0, 3], [5, -100]]).repeat(6, 1)[:BATCH]

# What each head computes from the layer's outputs o, target x, and what is given besides; written out.
Case = tuple[str, int, Tensor, dict[str, Tensor], Callable[..., Tensor]]


def halves(o: Tensor) -> tuple[Tensor, ...]:
    return o[:, :FEATURES], o[:, FEATURES : 2 * FEATURES], o[:, 2 * FEATURES :]


def share(o: Tensor, library: Tensor) -> Tensor:
    return library[:, None] * torch.softmax(o[:, :FEATURES], -1)


def both(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of the two halves of the outputs."""
    return lambda o, x: function(halves(o)[0], x, halves(o)[1])


nb, zinb = reference.negative_binomial_nll, reference.zero_inflated_negative_binomial_nll
nb_mixture = reference.negative_binomial_mixture_nll
CASES: dict[str, Case] = {
    "bernoulli": ("bernoulli", 1, GREY, {}, reference.bernoulli_nll),
    "continuous bernoulli": ("continuous_bernoulli", 1, GREY, {}, reference.continuous_bernoulli_nll),
    "gaussian": ("gaussian", 1, GREY, {}, reference.gaussian_nll),
    "gaussian, scalar": ("gaussian", 1, GREY, {"logvar": normal(1)[0]}, reference.gaussian_nll),
    "gaussian, by feature": ("gaussian", 1, GREY, {"logvar": normal(FEATURES)}, reference.gaussian_nll),
    "gaussian, by sample": ("gaussian", 1, GREY, {"logvar": normal(BATCH, 1)}, reference.gaussian_nll),
    "gaussian, by element": (
        "gaussian",
        1,
        GREY,
        {"logvar": normal(BATCH, FEATURES)},
        reference.gaussian_nll,
    ),
    "gaussian, two heads": ("gaussian", 2, GREY, {}, both(reference.gaussian_nll)),
    "laplace": ("laplace", 1, GREY, {"log_scale": normal(FEATURES)}, reference.laplace_nll),
    "laplace, two heads": ("laplace", 2, GREY, {}, both(reference.laplace_nll)),
    "logistic": (
        "discretized_logistic",
        1,
        GREY,
        {"log_scale": normal(1, FEATURES)},
        reference.discretized_logistic_nll,
    ),
    "logistic, two heads": (
        "discretized_logistic",
        2,
        GREY,
        {},
        both(reference.discretized_logistic_nll),
    ),
    "poisson": ("poisson", 1, COUNTS, {}, lambda o, x: reference.poisson_nll(o.exp(), x)),
    "poisson, library": (
        "poisson",
        1,
        COUNTS,
        {"library": LIBRARY},
        lambda o, x, library: reference.poisson_nll(share(o, library), x),
    ),
    "nb": ("negative_binomial", 1, COUNTS, {"theta": THETA}, lambda o, x, theta: nb(o.exp(), x, theta)),
    "nb, two heads": (
        "negative_binomial",
        2,
        COUNTS,
        {},
        lambda o, x: nb(halves(o)[0].exp(), x, halves(o)[1].exp()),
    ),
    "nb, library": (
        "negative_binomial",
        1,
        COUNTS,
        {"theta": THETA, "library": LIBRARY},
        lambda o, x, theta, library: nb(share(o, library), x, theta),
    ),
    "nb, two heads, library": (
        "negative_binomial",
        2,
        COUNTS,
        {"library": LIBRARY},
        lambda o, x, library: nb(share(o, library), x, halves(o)[1].exp()),
    ),
    "zinb": (
        "zero_inflated_negative_binomial",
        2,
        COUNTS,
        {"theta": THETA},
        lambda o, x, theta: zinb(halves(o)[0].exp(), x, theta, halves(o)[1]),
    ),
    "zinb, three heads, library": (
        "zero_inflated_negative_binomial",
        3,
        COUNTS,
        {"library": LIBRARY},
        lambda o, x, library: zinb(share(o, library), x, halves(o)[1].exp(), halves(o)[2]),
    ),
    "nb mixture": (
        "negative_binomial_mixture",
        3,
        COUNTS,
        {"theta": THETA},
        lambda o, x, theta: nb_mixture(halves(o)[0].exp(), x, halves(o)[1].exp(), theta, halves(o)[2]),
    ),
    "nb mixture, two thetas": (
        "negative_binomial_mixture",
        3,
        COUNTS,
        {"theta": THETA, "theta_2": 3 * THETA},
        lambda o, x, theta, theta_2: nb_mixture(
            halves(o)[0].exp(), x, halves(o)[1].exp(), theta, halves(o)[2], theta_2
        ),
    ),
    "nb mixture, five heads": (
        "negative_binomial_mixture",
        5,
        COUNTS,
        {},
        lambda o, x: nb_mixture(
            o[:, :FEATURES].exp(),
            x,
            *(
                f(part)
                for f, part in zip(
                    (torch.exp, torch.exp, lambda p: p, torch.exp), o.split(FEATURES, 1)[1:], strict=True
                )
            ),
        ),
    ),
    "multinomial": ("multinomial", 1, COUNTS, {}, reference.multinomial_nll),
    "categorical": ("categorical", 1, WORDS, {}, reference.categorical_nll),
}


def layer(case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """hidden, weight, bias"""
    _, heads, target, _, _ = case
    hidden = normal(*target.shape[: 2 if target is WORDS else 1], HIDDEN, seed=1)
    tensors = (
        hidden,
        normal(heads * FEATURES, HIDDEN, seed=2, scale=0.4),
        normal(heads * FEATURES, seed=3, scale=0.3),
    )
    return [t.to(dtype).requires_grad_() for t in tensors]


def fused(case: Case, tensors: list[Tensor], given: dict[str, Tensor], **options: Any) -> Tensor:
    hidden, weight, bias = tensors
    function = getattr(vae_fast, f"linear_{case[0]}_nll")
    return function(hidden, weight, bias, case[2], **given, **options)
