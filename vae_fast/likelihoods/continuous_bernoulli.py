"""The Bernoulli density on [0, 1]: Loaiza-Ganem and Cunningham, "The continuous Bernoulli", 2019."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .linear import linear_nll
from .numerics import arithmetic_dtype, read, total, weighted, widest
from .spec import Parameter, Spec


def continuous_bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """max(l, 0) - x l + log((1 - exp(-|l|)) / |l|), and for |l| < 2 the same as (1/2 - x) l + log(sinh(l/2) / (l/2)).

    In float64, as 1/l and its like cancel around 0.
    """
    x, el = read(target, logits, mask=mask, dtype=widest(logits))
    small = el.abs() < 2
    near = (0.5 - x) * el + torch.log1p(_sinh_series(torch.where(small, el / 2, 0.0))[0])
    a = torch.where(small, 2.0, el.abs())
    far = a * torch.where(el < 0, x, 1 - x) + torch.log1p(-torch.exp(-a)) - torch.log(a)
    nll = total(torch.where(small, near, far), mask, None, reduction, target.ndim)
    dtype = arithmetic_dtype(target, logits)
    return weighted(nll.to(dtype), weight, 1 if reduction == "sample" else target.ndim)


def d_continuous_bernoulli(x: Tensor, el: Tensor) -> tuple[Tensor, ...]:
    """The mean less x: from the nearer end of [0, 1], which is 1/|l| - 1 / expm1(|l|) away, or for |l| < 2 from 1/2."""
    x, el = x.to(widest(x)), el.to(widest(x))
    small = el.abs() < 2
    u, slope = _sinh_series(torch.where(small, el / 2, 0.0))
    a = torch.where(small, 2.0, el.abs())
    from_end = 1 / a - 1 / torch.expm1(a)
    far = torch.where(el < 0, from_end - x, (1 - x) - from_end)
    return (torch.where(small, (0.5 - x) + 0.5 * slope / (1 + u), far),)


def _sinh_series(h: Tensor) -> tuple[Tensor, Tensor]:
    """sinh(h)/h - 1 and its derivative, for |h| <= 1."""
    terms = [(2 * k, math.factorial(2 * k + 1)) for k in range(1, 10)]
    value, slope = torch.zeros_like(h), torch.zeros_like(h)
    for power, divisor in terms:
        value, slope = value + h**power / divisor, slope + power * h ** (power - 1) / divisor
    return value, slope


CONTINUOUS_BERNOULLI = Spec(
    "continuous_bernoulli",
    (Parameter("logits"),),
    support="unit",
    nll=continuous_bernoulli_nll,
    derivatives=d_continuous_bernoulli,
    source='Loaiza-Ganem and Cunningham, "The continuous Bernoulli", 2019',
)


def linear_continuous_bernoulli_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        CONTINUOUS_BERNOULLI,
        hidden,
        weight,
        bias,
        target,
        mask=mask,
        sample_weight=sample_weight,
    )
