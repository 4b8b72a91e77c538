"""One of several classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .linear import linear_nll
from .numerics import arithmetic_dtype, total, weighted, widest
from .spec import Parameter, Spec

IGNORED = -100  # as in torch


def categorical_nll(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log_softmax(l)[x], 0 where x is -100, NaN where there is no class x."""
    el = logits.to(widest(logits))
    index, classes = target.long().expand(logits.shape[:-1]), logits.shape[-1]
    counted = index != IGNORED
    if mask is not None:
        counted = counted & mask
    el = torch.where(counted[..., None], el, 0.0)  # an ignored position may hold NaN; its gradient is 0
    known = (index >= 0) & (index < classes)
    log_p = torch.log_softmax(el, -1).gather(-1, torch.where(known, index, 0)[..., None])[..., 0]
    nll = -log_p * torch.where(known, 1.0, torch.nan)
    nll = total(nll, counted, None, reduction, target.ndim).to(arithmetic_dtype(logits))
    return weighted(nll, weight, 1 if reduction == "sample" else target.ndim)


CATEGORICAL = Spec(
    "categorical",
    (Parameter("logits"),),
    support="classes",
    nll=categorical_nll,
    op="categorical",
    source='Bowman et al., "Generating sentences from a continuous space", 2016',
)


def linear_categorical_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(CATEGORICAL, hidden, weight, bias, target, mask=mask, sample_weight=sample_weight)
