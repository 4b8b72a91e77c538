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
from .special import (
    deviance,
    log1p_minus,
    log1p_ratio,
    log_factorial_minus,
    log_ratio,
    stirling,
    stirling_slope,
)

EPS = 1e-8
NOTHING = float.fromhex("0x1.5798eep-27")  # a count closer to 0 than this is none: 1e-8 in float32

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


def _domain(x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Whether x counts nothing; what an infinite x or mean adds to what grows with both; x, with 1 where it counts
    nothing, mean and theta with EPS, at most the largest number, and NaN where they are negative."""
    none = x.abs() < NOTHING
    values = [torch.where(none, 1.0, x), *(p + EPS for p in params)]
    growth, of_mean = (torch.where(v.isposinf(), torch.inf, 0.0) for v in values[:2])
    growth = torch.where(values[0].isposinf(), growth - of_mean, of_mean)
    largest = torch.finfo(x.dtype).max
    return none, growth, [torch.where(v < 0, torch.nan, v.clamp(max=largest)) for v in values]


def _unit(*values: Tensor) -> Tensor:
    """The unit in which no product of two of these leaves float64."""
    large = torch.stack(torch.broadcast_tensors(*values)).amax(0) > 2.0**500
    return torch.exp2(530 * large.to(values[0].dtype))


def poisson(x: Tensor, mean: Tensor) -> Tensor:
    """mu - x log mu + log x!, as x log(x / mu) - (x - mu) and the rest of log x!"""
    none, growth, (x, mu) = _domain(x, mean)
    return torch.where(none, mu, deviance(x, mu) + log_factorial_minus(x)) + growth


def d_poisson(x: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    none, _, (_, mu) = _domain(x, mean)
    x = torch.where(none, 0.0, torch.where(x < 0, torch.nan, x))
    slope = torch.where(mean.isposinf(), 1 + (x - x), (mu - x) / mu)
    return (torch.where(none, 1.0, slope) + 0 * mu,)


def negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """-log of Gamma(x + theta) / (Gamma(theta) x!) (theta / (theta + mu))^theta (mu / (theta + mu))^x, at theta = inf
    Poisson's.

    With a theta above |x - mu| as a difference of deviances, with a smaller one by the logarithms, whose large terms
    are combined: each form cancels where the other does not.
    """
    given = x
    none, growth, (x, mu, th) = _domain(x, mean, theta)
    of_zero = torch.where(mu < 1e-17 * th, mu, th * log1p_ratio(mu, th))
    rest = 0.5 * log1p_ratio(x, th) + (stirling(th) - stirling(x + th)) + log_factorial_minus(x)
    unit = _unit(x, mu, th)
    x, mu, th = x / unit, mu / unit, th / unit
    t = th * (x - mu) / (mu * (x + th))
    small = t.abs() < 0.5
    log_odds = torch.where(
        small, torch.log1p(torch.where(small, t, 0.0)), log_ratio(x * (mu + th), mu * (x + th))
    )
    far = x * log_odds - th * log_ratio(x + th, mu + th)
    near = deviance(x, mu) - deviance(x + th, mu + th)
    of_count = unit * torch.where((x - mu).abs() > th, far, near) + rest
    nll = torch.where(none, of_zero, of_count) + growth
    return torch.where(theta.isposinf(), poisson(given, mean), nll)


def d_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
    endless, is_poisson, no_limit = x.isposinf(), theta.isposinf(), mean.isposinf()
    none, growth, (x, mu, th) = _domain(x, mean, theta)
    x = torch.where(none, 0.0, x)
    slopes = stirling_slope(x + th) - stirling_slope(th)
    unit = _unit(x, mu, th)
    x, mu, th = x / unit, mu / unit, th / unit
    # digamma(x + theta) - log(x + theta) less the same without x
    rest = 0.5 * (x / (x + th)) / (th * unit) + slopes
    u = (x - mu) / (th + mu)
    minus = torch.where(u.abs() < 0.25, log1p_minus(u, 1 + u), log_ratio(x + th, mu + th) - u)
    apart = torch.where(is_poisson, mu - x, (mu - x) * th / (th + mu))
    by_mean, by_theta = apart / mu, -(minus + rest)
    by_mean = torch.where(no_limit, is_poisson + 0 * (x + th), by_mean) - torch.where(endless, growth, 0.0)
    return by_mean, torch.where(is_poisson, 0 * (mu + x), by_theta + growth)


def zero_inflated_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor, logit: Tensor) -> Tensor:
    """-log(sigmoid(p) [x = 0] + sigmoid(-p) NB(x; mu, theta))"""
    nb, a = negative_binomial(x, mean, theta), -logit
    # Near 1 from its distance to 1, else softplus(a) - softplus(a - nb), of a large a without what is large.
    distance = torch.sigmoid(a) * -torch.expm1(-nb)
    large = torch.minimum(nb, a) - torch.log1p(torch.exp(-(a - nb).abs()))
    far = torch.where(a > 40, large, F.logsigmoid(nb - a) - F.logsigmoid(-a))
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
    by_theta = q * torch.where(none & nb.isinf(), 0.0, by_theta)
    undefined = torch.where(by_mean.isnan() | logit.isnan(), torch.nan, 0.0)  # as the value is
    by_logit = torch.where(none, by_logit, torch.sigmoid(logit))
    return q * by_mean + undefined, by_theta + undefined, by_logit + undefined


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
