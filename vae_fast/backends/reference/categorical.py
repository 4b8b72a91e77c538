"""-log p(class) and -log p(counts) of a softmax over the last dim, in plain PyTorch.

In float64, as counts of 1e30 see what is left of a softmax below 1e-38.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .latent import arithmetic_dtype, per_sample, widest

IGNORED = -100  # as in torch


def categorical_nll(
    logits: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """-log_softmax(l)[x], 0 where x is -100, NaN where there is no class x."""
    el = logits.to(widest(logits))
    index, classes = target.long(), logits.shape[-1]
    counted = index != IGNORED
    if mask is not None:
        counted = counted & mask
    el = torch.where(counted[..., None], el, 0.0)  # what is left out may be NaN, and learns nothing
    known = (index >= 0) & (index < classes)
    log_p = torch.log_softmax(el, -1).gather(-1, torch.where(known, index, 0)[..., None])[..., 0]
    nll = -log_p * torch.where(known, 1.0, torch.nan)
    nll = per_sample(torch.where(counted, nll, 0.0)).to(arithmetic_dtype(logits))
    return nll if weight is None else nll * weight


def multinomial_nll(
    logits: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """-sum x log_softmax(l); a class that is not counted adds 0, be its logit -inf."""
    el, x = (t.to(widest(logits)) for t in (logits, target))
    if mask is not None:
        el, x = (torch.where(mask[..., None], v, 0.0) for v in (el, x))
    half = 0.5 * el - 0.5 * el.detach().max(-1, keepdim=True).values  # twice of it might not fit
    log_sum = torch.logsumexp(2 * half, -1)
    counted = 2 * (x * half.masked_fill((x == 0) & (half == -math.inf), 0)).sum(-1)
    nll = per_sample(x.sum(-1) * log_sum - counted).to(arithmetic_dtype(logits, target))
    return nll if weight is None else nll * weight
