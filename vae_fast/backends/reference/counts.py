"""-log p(counts | decoder output) per sample, in plain PyTorch, and its derivatives per element.

In float64, as differences of lgamma cancel. EPS, as in scvi-tools, keeps a mean or dispersion of 0 finite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .latent import arithmetic_dtype
from .likelihood import read, total

EPS = 1e-8
NOTHING = 1e-8  # a count below this is no count


def _read(target: Tensor, *params: Tensor | float, mask: Tensor | None) -> tuple[Tensor, ...]:
    return read(target, *params, mask=mask, dtype=torch.float64, counts=True)


def _total(terms: Tensor, mask: Tensor | None, weight: Tensor | None, *inputs: object) -> Tensor:
    nll = total(terms, mask, None).to(arithmetic_dtype(*inputs))
    return nll if weight is None else nll * weight


def poisson_nll(
    mean: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """mu - x log mu + log x!"""
    x, mu = _read(target, mean, mask=mask)
    mu = mu + EPS
    return _total(mu - x * torch.log(mu) + torch.lgamma(x + 1), mask, weight, mean, target)


def negative_binomial(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """-log of Gamma(x + theta) / (Gamma(theta) x!) (theta / (theta + mu))^theta (mu / (theta + mu))^x"""
    combinations = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return theta * torch.log1p(mu / theta) - x * torch.log(mu / (theta + mu)) - combinations


def negative_binomial_nll(
    mean: Tensor,
    target: Tensor,
    theta: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """-log NB(x; mean mu, inverse dispersion theta)"""
    x, mu, th = _read(target, mean, theta, mask=mask)
    return _total(negative_binomial(x, mu + EPS, th + EPS), mask, weight, mean, target, theta)


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
    x, mu, th, p = _read(target, mean, theta, dropout_logits, mask=mask)
    mu, th = mu + EPS, th + EPS
    at_zero = -th * torch.log1p(mu / th)  # log NB(0)
    nothing = F.logsigmoid(p - at_zero) - F.logsigmoid(p)  # softplus(-p) - softplus(log NB(0) - p)
    something = -F.logsigmoid(-p) + negative_binomial(x, mu, th)
    terms = torch.where(x < NOTHING, nothing, something)
    return _total(terms, mask, weight, mean, target, theta, dropout_logits)


def d_poisson(x: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    return (1 - x / (mean + EPS),)


def _d_negative_binomial(x: Tensor, mu: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    u = (x - mu) / (theta + mu)
    rest = (torch.digamma(y) - torch.log(y) for y in (theta + x, theta))
    return -theta * u / mu, u - torch.log1p(u) - next(rest) + next(rest)


def d_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
    return _d_negative_binomial(x, mean + EPS, theta + EPS)


def d_zero_inflated_negative_binomial(
    x: Tensor, mean: Tensor, theta: Tensor, p: Tensor
) -> tuple[Tensor, ...]:
    mu, th = mean + EPS, theta + EPS
    ratio = torch.log1p(mu / th)
    q = torch.sigmoid(-th * ratio - p)  # P(a count of the negative binomial | x = 0)
    at_zero = (q * th / (th + mu), q * (ratio - mu / (th + mu)), q - torch.sigmoid(-p))
    above = (*_d_negative_binomial(x, mu, th), torch.sigmoid(p))
    return tuple(torch.where(x < NOTHING, a, b) for a, b in zip(at_zero, above, strict=True))


# Derivatives of one element with respect to each parameter: (x, *params) -> (d/d param, ...).
DERIVATIVES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "poisson": d_poisson,
    "negative_binomial": d_negative_binomial,
    "zero_inflated_negative_binomial": d_zero_inflated_negative_binomial,
}
