"""The likelihoods that are compared: data for each, and -log p as it is written today, in PyTorch and by libraries.

Every expression takes (target, *parameters) and returns nll, (batch,).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Expression = Callable[..., Tensor]
EPS = 1e-8  # of scvi-tools


@dataclass(frozen=True)
class Likelihood:
    """One likelihood and its sizes."""

    make: Callable[[tuple[int, ...], torch.Generator], tuple[Tensor, ...]]  # target, parameters
    eager: Expression
    # by name: module, and what gives the expression
    libraries: dict[str, tuple[str, Callable[[], Expression]]] = field(default_factory=dict)
    large: tuple[int, ...] = (4096, 784)
    small: tuple[int, ...] = (128, 784)
    tiny: tuple[int, ...] = (32, 24)
    jax: bool = False  # likelihoods_jax has it
    tolerance: float = 1e-5  # of what others write, relative to the largest value; ours have 1e-5
    upcasts: bool = False  # its lines go wrong in bfloat16, so that it takes float32 first


def bernoulli(target: Tensor, logits: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def continuous_bernoulli(target: Tensor, logits: Tensor) -> Tensor:
    return -torch.distributions.ContinuousBernoulli(logits=logits).log_prob(target).sum(-1)


def gaussian(target: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return (0.5 * (math.log(2 * math.pi) + logvar + (target - mean) ** 2 / logvar.exp())).sum(-1)


def laplace(target: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    return (math.log(2) + log_scale + (target - location).abs() / log_scale.exp()).sum(-1)


def discretized_logistic(target: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    return -_log_logistic(2 * target - 1, mean, log_scale.clamp(min=-7.0)).sum(-1)


def _log_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """The lines of PixelCNN++, as NVAE and VDVAE have them."""
    centered, inverse = x - mean, torch.exp(-log_scale)
    plus, minus, middle = inverse * (centered + 1 / 255), inverse * (centered - 1 / 255), inverse * centered
    mass = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scale - 2 * F.softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    return torch.where(
        x < -0.999, plus - F.softplus(plus), torch.where(x > 0.999, -F.softplus(minus), inside)
    )


def discretized_logistic_mixture(target: Tensor, params: Tensor) -> Tensor:
    """VDVAE's discretized_mix_logistic_loss, which takes channels last."""
    x, out = 2 * target.permute(0, 2, 3, 1) - 1, params.permute(0, 2, 3, 1)
    mixtures = out.shape[-1] // 10
    logits, rest = out[..., :mixtures], out[..., mixtures:].reshape(*x.shape, 3 * mixtures)
    means, log_scales, coefficients = rest.split(mixtures, -1)
    log_scales, coefficients = log_scales.clamp(min=-7.0), torch.tanh(coefficients)
    x = x[..., None].expand_as(means)
    green = means[..., 1, :] + coefficients[..., 0, :] * x[..., 0, :]
    blue = means[..., 2, :] + coefficients[..., 1, :] * x[..., 0, :] + coefficients[..., 2, :] * x[..., 1, :]
    means = torch.stack([means[..., 0, :], green, blue], -2)
    log_probs = _log_logistic(x, means, log_scales).sum(-2) + F.log_softmax(logits, -1)
    return -torch.logsumexp(log_probs, -1).sum((1, 2))


def poisson(target: Tensor, mean: Tensor) -> Tensor:
    return -torch.distributions.Poisson(mean + EPS, validate_args=False).log_prob(target).sum(-1)


def negative_binomial(target: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """The lines of scvi-tools' log_nb_positive."""
    log_theta_mu = torch.log(theta + mean + EPS)
    log_prob = (
        theta * (torch.log(theta + EPS) - log_theta_mu)
        + target * (torch.log(mean + EPS) - log_theta_mu)
        + torch.lgamma(target + theta)
        - torch.lgamma(theta)
        - torch.lgamma(target + 1)
    )
    return -log_prob.sum(-1)


def zero_inflated_negative_binomial(target: Tensor, mean: Tensor, theta: Tensor, dropout: Tensor) -> Tensor:
    """The lines of scvi-tools' log_zinb_positive."""
    softplus_pi = F.softplus(-dropout)
    log_theta_eps, log_theta_mu = torch.log(theta + EPS), torch.log(theta + mean + EPS)
    at_zero = -dropout + theta * (log_theta_eps - log_theta_mu)
    above = (
        -softplus_pi
        + at_zero
        + target * (torch.log(mean + EPS) - log_theta_mu)
        + torch.lgamma(target + theta)
        - torch.lgamma(theta)
        - torch.lgamma(target + 1)
    )
    nothing = (target < EPS).to(target.dtype)
    return -(nothing * (F.softplus(at_zero) - softplus_pi) + (1 - nothing) * above).sum(-1)


def negative_binomial_mixture(
    target: Tensor, mean_1: Tensor, mean_2: Tensor, theta: Tensor, logits: Tensor
) -> Tensor:
    """The lines of scvi-tools' log_mixture_nb for one theta."""
    terms = []
    for mean in (mean_1, mean_2):
        log_theta_mu = torch.log(theta + mean + EPS)
        terms.append(
            theta * (torch.log(theta + EPS) - log_theta_mu)
            + target * (torch.log(mean + EPS) - log_theta_mu)
            + torch.lgamma(target + theta)
            - torch.lgamma(theta)
            - torch.lgamma(target + 1)
        )
    mixed = torch.logsumexp(torch.stack((terms[0], terms[1] - logits)), 0)
    return -(mixed - F.softplus(-logits)).sum(-1)


def multinomial(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * F.log_softmax(logits, -1)).sum(-1)


def categorical(target: Tensor, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, -1), target, reduction="none").sum(-1)


def normal_distribution() -> Expression:
    return lambda target, mean, logvar: (
        -torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).log_prob(target).sum(-1)
    )


def gaussian_nll_loss() -> Expression:
    return lambda target, mean, logvar: F.gaussian_nll_loss(
        mean, target, logvar.exp(), full=True, eps=0, reduction="none"
    ).sum(-1)


def laplace_distribution() -> Expression:
    return lambda target, location, log_scale: (
        -torch.distributions.Laplace(location, log_scale.exp()).log_prob(target).sum(-1)
    )


def scvi(name: str) -> dict[str, tuple[str, Callable[[], Expression]]]:
    def load() -> Expression:
        log_prob = getattr(importlib.import_module("scvi.distributions._negative_binomial"), name)
        return lambda target, *params: -log_prob(target, *params).sum(-1)

    return {"scvi-tools": ("scvi", load)}


def scvi_mixture() -> dict[str, tuple[str, Callable[[], Expression]]]:
    def load() -> Expression:
        log_prob = importlib.import_module("scvi.distributions._negative_binomial").log_mixture_nb
        return lambda target, mean_1, mean_2, theta, logits: (
            -log_prob(target, mean_1, mean_2, theta, None, logits).sum(-1)
        )

    return {"scvi-tools": ("scvi", load)}


def grey(*others: Callable[[tuple[int, ...], torch.Generator], Tensor]) -> Any:
    def make(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.rand(shape, generator=generator), *(other(shape, generator) for other in others))

    return make


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def log_scale(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) / 2 - 2


def expression_counts(parameters: int) -> Any:
    """Counts with about 79% zeros, as in single-cell data; mean, a dispersion per gene, dropout logits."""

    def make(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        theta = 0.5 + torch.rand(shape[-1], generator=generator)
        rate = torch.rand(shape, generator=generator).pow(3) * 1.1
        mean = 0.2 + rate * torch.rand(shape, generator=generator)
        dropout = torch.randn(shape, generator=generator)
        return (torch.poisson(rate, generator=generator), mean, theta, dropout)[: parameters + 1]

    return make


def protein_counts(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """As in CITE-seq: a background of few counts and a foreground of many; one theta per protein."""
    theta = 0.5 + torch.rand(shape[-1], generator=generator)
    background, foreground = (s * (0.2 + torch.rand(shape, generator=generator)) for s in (2, 40))
    logits = torch.randn(shape, generator=generator)
    rate = torch.where(torch.rand(shape, generator=generator) < torch.sigmoid(logits), background, foreground)
    return torch.poisson(rate, generator=generator), background, foreground, theta, logits


def items(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.rand(shape, generator=generator) < 0.01).float(), torch.randn(shape, generator=generator)


def tokens(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    target = torch.randint(0, shape[-1], shape[:-1], generator=generator)
    return target, torch.randn(shape, generator=generator)


def mixture(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    batch, _, *pixels = shape
    levels = torch.randint(0, 256, shape, generator=generator) / 255
    return levels, torch.randn((batch, 100, *pixels), generator=generator) / 2


SINGLE_CELL: dict[str, Any] = {"large": (1024, 4000), "small": (128, 512), "tolerance": 1e-4}
LIKELIHOODS = {
    "bernoulli": Likelihood(grey(normal), bernoulli, large=(16384, 784), jax=True),
    "continuous_bernoulli": Likelihood(grey(normal), continuous_bernoulli, tolerance=1e-2, upcasts=True),
    "gaussian": Likelihood(
        grey(normal, normal),
        gaussian,
        {
            "torch.distributions": ("torch", normal_distribution),
            "F.gaussian_nll_loss": ("torch", gaussian_nll_loss),
        },
        jax=True,
    ),
    "laplace": Likelihood(
        grey(normal, normal), laplace, {"torch.distributions": ("torch", laplace_distribution)}, jax=True
    ),
    "discretized_logistic": Likelihood(grey(normal, log_scale), discretized_logistic, tolerance=1e-2),
    "discretized_logistic_mixture": Likelihood(
        mixture,
        discretized_logistic_mixture,
        large=(64, 3, 32, 32),
        small=(4, 3, 32, 32),
        tiny=(2, 3, 4, 4),
        tolerance=1e-2,
        upcasts=True,
    ),
    "poisson": Likelihood(expression_counts(1), poisson, jax=True),
    "negative_binomial": Likelihood(
        expression_counts(2), negative_binomial, scvi("log_nb_positive"), **SINGLE_CELL, jax=True
    ),
    "zero_inflated_negative_binomial": Likelihood(
        expression_counts(3), zero_inflated_negative_binomial, scvi("log_zinb_positive"), **SINGLE_CELL
    ),
    "negative_binomial_mixture": Likelihood(
        protein_counts, negative_binomial_mixture, scvi_mixture(), **SINGLE_CELL
    ),
    "multinomial": Likelihood(items, multinomial, large=(4096, 20000), small=(128, 2000), jax=True),
    "categorical": Likelihood(
        tokens, categorical, large=(64, 64, 10000), small=(8, 16, 1000), tiny=(4, 3, 24), jax=True
    ),
}
