"""A Poisson count."""

from __future__ import annotations

import torch
from torch import Tensor

from .counts import count_nll, domain
from .csr import Csr
from .linear import linear_nll
from .spec import Parameter, Spec
from .special import deviance, log_factorial_minus


def poisson_nll(
    mean: Tensor,
    target: Tensor | Csr,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """mu - x log mu + log x!"""
    return count_nll(poisson, d_poisson, target, mean, mask=mask, weight=weight, reduction=reduction)


def poisson(x: Tensor, mean: Tensor) -> Tensor:
    """mu - x log mu + log x!, as x log(x / mu) - (x - mu) and the rest of log x!"""
    none, growth, (x, mu) = domain(x, mean)
    return torch.where(none, mu, deviance(x, mu) + log_factorial_minus(x)) + growth


def d_poisson(x: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    none, _, (_, mu) = domain(x, mean)
    x = torch.where(none, 0.0, torch.where(x < 0, torch.nan, x))
    slope = torch.where(mean.isposinf(), 1 + (x - x), (mu - x) / mu)
    return (torch.where(none, 1.0, slope) + 0 * mu,)


POISSON = Spec(
    "poisson",
    (Parameter("mean", is_log=True),),
    support="counts",
    nll=poisson_nll,
    derivatives=d_poisson,
    takes_library=True,
    source='Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018',
)


def linear_poisson_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    *,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        POISSON,
        hidden,
        weight,
        bias,
        target,
        library=library,
        mask=mask,
        sample_weight=sample_weight,
    )
