"""A negative binomial count, of a mean and an inverse dispersion."""

from __future__ import annotations

import torch
from torch import Tensor

from .counts import count_nll, domain, shared_unit
from .csr import Csr
from .linear import linear_nll
from .poisson import poisson
from .spec import Parameter, Spec
from .special import (
    deviance,
    log1p_minus,
    log1p_ratio,
    log_factorial_minus,
    log_ratio,
    stirling,
    stirling_slope,
)


def negative_binomial_nll(
    mean: Tensor,
    target: Tensor | Csr,
    theta: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log NB(x; mean mu, inverse dispersion theta)"""
    return count_nll(
        negative_binomial,
        d_negative_binomial,
        target,
        mean,
        theta,
        mask=mask,
        weight=weight,
        reduction=reduction,
    )


def negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """-log of Gamma(x + theta) / (Gamma(theta) x!) (theta / (theta + mu))^theta (mu / (theta + mu))^x, at theta = inf
    Poisson's.

    With a theta above |x - mu| as a difference of deviances, with a smaller one by the logarithms, whose large terms
    are combined: each form cancels where the other does not.
    """
    given = x
    none, growth, (x, mu, th) = domain(x, mean, theta)
    of_zero = torch.where(mu < 1e-17 * th, mu, th * log1p_ratio(mu, th))
    rest = 0.5 * log1p_ratio(x, th) + (stirling(th) - stirling(x + th)) + log_factorial_minus(x)
    unit = shared_unit(x, mu, th)
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
    none, growth, (x, mu, th) = domain(x, mean, theta)
    x = torch.where(none, 0.0, x)
    slopes = stirling_slope(x + th) - stirling_slope(th)
    unit = shared_unit(x, mu, th)
    x, mu, th = x / unit, mu / unit, th / unit
    # digamma(x + theta) - log(x + theta) less the same without x
    rest = 0.5 * (x / (x + th)) / (th * unit) + slopes
    u = (x - mu) / (th + mu)
    minus = torch.where(u.abs() < 0.25, log1p_minus(u, 1 + u), log_ratio(x + th, mu + th) - u)
    apart = torch.where(is_poisson, mu - x, (mu - x) * th / (th + mu))
    by_mean, by_theta = apart / mu, -(minus + rest)
    by_mean = torch.where(no_limit, is_poisson + 0 * (x + th), by_mean) - torch.where(endless, growth, 0.0)
    return by_mean, torch.where(is_poisson, 0 * (mu + x), by_theta + growth)


THETA = Parameter("theta", is_log=True, is_bounded=True, may_be_fixed=True)
NEGATIVE_BINOMIAL = Spec(
    "negative_binomial",
    (Parameter("mean", is_log=True), THETA),
    support="counts",
    nll=negative_binomial_nll,
    derivatives=d_negative_binomial,
    takes_library=True,
    source='Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018',
)


def linear_negative_binomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    theta: Tensor | float | None = None,
    *,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        NEGATIVE_BINOMIAL,
        hidden,
        weight,
        bias,
        target,
        theta,
        library=library,
        mask=mask,
        sample_weight=sample_weight,
    )
