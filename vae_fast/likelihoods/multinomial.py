"""Counts of classes, without the multinomial coefficient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .csr import Csr, as_csr, is_csr, sum_by_row
from .linear import linear_nll
from .numerics import arithmetic_dtype, total, weighted, widest
from .spec import Parameter, Spec


def multinomial_nll(
    logits: Tensor,
    target: Tensor | Csr,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-sum x log_softmax(l); a class that is not counted adds 0, be its logit -inf."""
    if is_csr(target):
        return _of_csr(logits, as_csr(target), mask, weight)
    el, x = (t.to(widest(logits)) for t in (logits, target))
    if mask is not None:
        el, x = (torch.where(mask[..., None], v, 0.0) for v in (el, x))
    half = 0.5 * el - 0.5 * el.detach().max(-1, keepdim=True).values  # twice of it might not fit
    log_sum = torch.logsumexp(2 * half, -1)
    counted = 2 * (x * half.masked_fill((x == 0) & (half == -math.inf), 0)).sum(-1)
    ndim = target.ndim - 1
    nll = total(x.sum(-1) * log_sum - counted, None, None, reduction, ndim)
    nll = nll.to(arithmetic_dtype(logits, target))
    return weighted(nll, weight, 1 if reduction == "sample" else ndim)


def _of_csr(logits: Tensor, target: Csr, mask: Tensor | None, weight: Tensor | None) -> Tensor:
    el, (rows, col, x) = logits.to(torch.float64), target.elements()
    if mask is not None:
        el, x = (
            torch.where(mask[..., None], el, 0.0),
            torch.where(mask.expand(len(target.crow) - 1)[rows], x, 0.0),
        )
    half = 0.5 * el - 0.5 * el.detach().max(-1, keepdim=True).values
    of_counts = half[..., rows, col]
    counted = x * of_counts.masked_fill((x == 0) & (of_counts == -math.inf), 0)
    count, weighed = (sum_by_row(v, rows, target.shape[0]) for v in (x, counted))
    nll = (count * torch.logsumexp(2 * half, -1) - 2 * weighed).to(arithmetic_dtype(logits, target.values))
    return weighted(nll, weight)


MULTINOMIAL = Spec(
    "multinomial",
    (Parameter("logits"),),
    support="counts",
    nll=multinomial_nll,
    op="categorical",
    source='Liang et al., "Variational autoencoders for collaborative filtering", 2018',
)


def linear_multinomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(MULTINOMIAL, hidden, weight, bias, target, mask=mask, sample_weight=sample_weight)
