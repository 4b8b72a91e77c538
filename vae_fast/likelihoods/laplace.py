"""A Laplace variable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .linear import Value, linear_nll
from .numerics import read, times_exp, total
from .spec import Parameter, Spec


def laplace_nll(
    location: Tensor,
    target: Tensor,
    log_scale: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """log 2 + s + |x - m| exp(-s); log_scale None is 0."""
    x, m, s = read(target, location, log_scale, mask=mask)
    distance = times_exp(x - m, -s) * sign(x - m).detach()
    return total(math.log(2) + s + distance, mask, weight, reduction, target.ndim)


def d_laplace(x: Tensor, m: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    return times_exp(sign(m - x), -s), 1 - times_exp((x - m).abs(), -s)


def sign(x: Tensor) -> Tensor:
    """torch.sign, but NaN of NaN."""
    return torch.where(x.isnan(), x, torch.sign(x))


LAPLACE = Spec(
    "laplace",
    (Parameter("location"), Parameter("log_scale", may_be_fixed=True, default=0.0)),
    support="real",
    nll=laplace_nll,
    derivatives=d_laplace,
    source='Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022',
)


def linear_laplace_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_scale: Value = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        LAPLACE,
        hidden,
        weight,
        bias,
        target,
        log_scale,
        mask=mask,
        sample_weight=sample_weight,
    )
