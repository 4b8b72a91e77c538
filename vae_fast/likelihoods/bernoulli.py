"""A Bernoulli variable, from its logit or its probability."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import linear_nll
from .numerics import read, total
from .spec import Parameter, Spec


def bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """x log(1 + exp(-l)) + (1 - x) log(1 + exp(l)): terms of one sign."""
    x, el = read(target, logits, mask=mask)
    return total(-x * F.logsigmoid(el) - (1 - x) * F.logsigmoid(-el), mask, weight, reduction, target.ndim)


def bernoulli_nll_from_probs(
    probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-x max(log p, -100) - (1 - x) max(log(1 - p), -100), NaN where p or x is no probability."""
    x, p = read(target, probs, mask=mask)
    valid = (p >= 0) & (p <= 1) & (x >= 0) & (x <= 1)
    x, safe = torch.where(valid, x, 0.5), torch.where(valid, p, 0.5)
    flat = safe * (1 - safe) < 1e-12  # there the slope is (p - x) 1e12 by definition, not that of a logarithm
    near = F.binary_cross_entropy(torch.where(flat, 0.5, safe), x, reduction="none")
    parabola = 0.5e12 * (safe - x.detach()) ** 2
    far = F.binary_cross_entropy(safe.detach(), x, reduction="none") + (parabola - parabola.detach())
    invalid = torch.where(valid, 0.0, p) * torch.where(valid, 1.0, torch.nan)
    return total(torch.where(flat, far, near) + invalid, mask, weight, reduction, target.ndim)


def d_bernoulli_probs(x: Tensor, p: Tensor) -> tuple[Tensor, ...]:
    valid = (p >= 0) & (p <= 1) & (x >= 0) & (x <= 1)
    return (torch.where(valid, (p - x) / (p * (1 - p)).clamp(min=1e-12), torch.nan),)


BERNOULLI = Spec(
    "bernoulli",
    (Parameter("logits"),),
    support="unit",
    nll=bernoulli_nll,
    derivatives=lambda x, el: ((1 - x) * torch.sigmoid(el) - x * torch.sigmoid(-el),),
    source='Kingma and Welling, "Auto-encoding variational Bayes", 2014',
)
BERNOULLI_PROBS = Spec(
    "bernoulli_probs",
    (Parameter("probs"),),
    support="unit",
    nll=bernoulli_nll_from_probs,
    derivatives=d_bernoulli_probs,
    source="torch.nn.functional.binary_cross_entropy",
)


def linear_bernoulli_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(BERNOULLI, hidden, weight, bias, target, mask=mask, sample_weight=sample_weight)
