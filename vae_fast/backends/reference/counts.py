"""-log p(counts | decoder output) per sample, in plain PyTorch, and its derivatives per element.

In float64, and without the lgammas of the textbook, which cancel. EPS, as in scvi-tools, keeps a mean or dispersion of
0 finite. A negative mean, dispersion or count gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .closed_form import with_derivatives
from .latent import arithmetic_dtype
from .likelihood import read, total
from .special import deviance, log1p_minus, log_factorial_minus, stirling, stirling_slope

EPS = 1e-8
NOTHING = float.fromhex("0x1.5798eep-27")  # a count closer to 0 than this is none: 1e-8 in float32
POISSON_LIMIT = 1e300  # what an infinite theta counts as

Derivatives = Callable[..., tuple[Tensor, ...]]


def _nll(
    terms: Callable[..., Tensor],
    derivatives: Derivatives,
    target: Tensor,
    *params: Tensor | float,
    mask: Tensor | None,
    weight: Tensor | None,
) -> Tensor:
    values = read(target, *params, mask=mask, dtype=torch.float64, counts=True)
    nll = total(with_derivatives(terms, derivatives, *values), mask, None).to(
        arithmetic_dtype(target, *params)
    )
    return nll if weight is None else nll * weight


def _domain(x: Tensor, *params: Tensor) -> list[Tensor]:
    """Whether x counts nothing, x with 1 in the place of nothing, mean and theta with EPS; NaN for what is negative."""
    none = x.abs() < NOTHING
    values = (torch.where(none, 1.0, x), *(p + EPS for p in params))
    return [none, *(torch.where(v < 0, torch.nan, v) for v in values)]


def poisson(x: Tensor, mean: Tensor) -> Tensor:
    """mu - x log mu + log x!, as x log(x / mu) - (x - mu) and the rest of log x!"""
    none, x, mu = _domain(x, mean)
    return torch.where(none, mu, deviance(x, mu) + log_factorial_minus(x))


def d_poisson(x: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    none, x, mu = _domain(x, mean)
    return (torch.where(none, mu / mu, (mu - x) / mu),)


def negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """-log of Gamma(x + theta) / (Gamma(theta) x!) (theta / (theta + mu))^theta (mu / (theta + mu))^x

    With a theta above |x - mu| as a difference of deviances, with a smaller one by the logarithms, whose large terms
    are combined: each form cancels where the other does not.
    """
    none, x, mu, th = _domain(x, mean, theta)
    th = th.clamp(max=POISSON_LIMIT)
    t = th * ((x - mu) / mu) / (x + th)
    small = t.abs() < 0.5
    log_odds = torch.where(
        small, torch.log1p(torch.where(small, t, 0.0)), torch.log((x / mu) * ((mu + th) / (x + th)))
    )
    far = x * log_odds - th * torch.log((x + th) / (mu + th))
    near = deviance(x, mu) - deviance(x + th, mu + th)
    rest = 0.5 * torch.log1p(x / th) + (stirling(th) - stirling(x + th)) + log_factorial_minus(x)
    return torch.where(none, th * torch.log1p(mu / th), torch.where((x - mu).abs() > th, far, near) + rest)


def d_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
    none, x, mu, th = _domain(x, mean, theta)
    x, th = torch.where(none, 0.0, x), th.clamp(max=POISSON_LIMIT)
    u = (x - mu) / (th + mu)
    # digamma(x + theta) - log(x + theta) less the same without x
    rest = 0.5 * (x / th) / (x + th) + (stirling_slope(x + th) - stirling_slope(th))
    return -(u * th) / mu, -(log1p_minus(u, (x + th) / (mu + th)) + rest)


def zero_inflated_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor, logit: Tensor) -> Tensor:
    """-log(sigmoid(p) [x = 0] + sigmoid(-p) NB(x; mu, theta))"""
    nb, a = negative_binomial(x, mean, theta), -logit
    # Near 1 from its distance to 1, else softplus(a) - softplus(a - nb), whose large terms are combined.
    distance = torch.sigmoid(a) * -torch.expm1(-nb)
    far = (
        torch.minimum(nb, F.relu(a))
        + torch.log1p(torch.exp(-a.abs()))
        - torch.log1p(torch.exp(-(a - nb).abs()))
    )
    near = distance < 0.5
    zero = torch.where(near, -torch.log1p(-torch.where(near, distance, 0.0)), far)
    return torch.where(x.abs() < NOTHING, zero, nb - F.logsigmoid(a))


def d_zero_inflated_negative_binomial(
    x: Tensor, mean: Tensor, theta: Tensor, logit: Tensor
) -> tuple[Tensor, ...]:
    none = x.abs() < NOTHING
    nb = negative_binomial(x, mean, theta)
    q = torch.where(none, torch.sigmoid(-logit - nb), 1.0)  # P(a count of the negative binomial | x = 0)
    by_logit = torch.sigmoid(-logit) * torch.sigmoid(logit + nb) * torch.expm1(-nb)
    by_mean, by_theta = d_negative_binomial(x, mean, theta)
    return q * by_mean, q * by_theta, torch.where(none, by_logit, torch.sigmoid(logit))


def poisson_nll(
    mean: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """mu - x log mu + log x!"""
    return _nll(poisson, d_poisson, target, mean, mask=mask, weight=weight)


def negative_binomial_nll(
    mean: Tensor,
    target: Tensor,
    theta: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """-log NB(x; mean mu, inverse dispersion theta)"""
    return _nll(negative_binomial, d_negative_binomial, target, mean, theta, mask=mask, weight=weight)


def zero_inflated_negative_binomial_nll(
    mean: Tensor,
    target: Tensor,
    theta: Tensor | float,
    dropout_logits: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """-log(sigmoid(p) [x = 0] + sigmoid(-p) NB(x; mu, theta))"""
    terms, derivatives = zero_inflated_negative_binomial, d_zero_inflated_negative_binomial
    return _nll(terms, derivatives, target, mean, theta, dropout_logits, mask=mask, weight=weight)


# Derivatives of one element with respect to each parameter: (x, *params) -> (d/d param, ...).
DERIVATIVES: dict[str, Derivatives] = {
    "poisson": d_poisson,
    "negative_binomial": d_negative_binomial,
    "zero_inflated_negative_binomial": d_zero_inflated_negative_binomial,
}
